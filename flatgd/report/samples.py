"""Replies side by side: some test histories with the first reply of each model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flatgd.artifacts.rows import GenerationRow, Scores
from flatgd.artifacts.store import fingerprint_of
from flatgd.config.recipe import Recipe
from flatgd.dialogue import Message


class SampledReply(NamedTuple):
    """One model's reply. `probability` is P(toxic) by the first judge."""

    model: str
    text: str
    probability: float | None


class Sample(NamedTuple):
    """A history with a reply of each model. `blind_order` is the order of the replies where the
    reader must not know whose they are."""

    dataset: str
    history: list[Message]
    replies: list[SampledReply]
    blind_order: list[int]


def samples_of(
    generations: Mapping[str, Sequence[GenerationRow]], scores: Scores, recipe: Recipe
) -> list[Sample]:
    """`samples_shown` histories. A hash of its text decides whether a history is shown."""
    rows = generations[recipe.models[0]]
    judge = recipe.judges[0].label
    judged = {
        name: [row["toxic"][judge][0] for row in scores[name] if row["kind"] == "generated"]
        for name in recipe.models
    }
    order = sorted(range(len(rows)), key=lambda i: fingerprint_of(rows[i]["history"]))
    found = []
    for i in order[: recipe.report.samples_shown]:
        replies = [
            SampledReply(name, generations[name][i]["replies"][0], judged[name][i])
            for name in recipe.models
        ]
        blind = sorted(
            range(len(replies)), key=lambda n: fingerprint_of([i, replies[n].model, "blind"])
        )
        found.append(Sample(rows[i]["dataset"], rows[i]["history"], replies, blind))
    return found
