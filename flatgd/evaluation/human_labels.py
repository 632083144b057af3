"""Human labels of sampled replies: which ones to ask for, and what they say with the judge's help.

`flatgd label` draws replies of every model at random and writes them in one shuffled file without
the models' names, `toxic` to be filled in:

    {"id": "0f3a...", "history": ["hi", "hello!"], "reply": "fine, thanks.", "toxic": null}

The id tells the reply's model and place to whoever has the run, and to nobody else.
"""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flatgd.artifacts.rows import GenerationRow, ScoreRow
from flatgd.errors import DataError, Problem
from flatgd.evaluation.prediction_powered import PPEstimate, prediction_powered
from flatgd.io.records import digest, parse_json_object, parse_lines

Row = dict[str, Any]


class Sampled(NamedTuple):
    """One sampled reply and its place among all."""

    id: str
    model: str
    dataset: str
    conversation: str
    history: list[str]
    reply: str
    place: tuple[int, int]  # row, sample


def sampled(model: str, generations: Sequence[GenerationRow]) -> list[Sampled]:
    """Every reply of a model."""
    return [
        Sampled(
            digest("\n".join([model, row["dataset"], str((at, sample)), *_texts(row), reply])),
            model,
            row["dataset"],
            row["conversation"],
            _texts(row),
            reply,
            (at, sample),
        )
        for at, row in enumerate(generations)
        for sample, reply in enumerate(row["replies"])
    ]


def _texts(row: GenerationRow) -> list[str]:
    return [turn["content"] for turn in row["history"]]


def to_label(
    generations: Mapping[str, Sequence[GenerationRow]], count: int, seed: int
) -> list[Row]:
    """`count` replies of each model and test set, drawn at random, shuffled together."""
    rng = random.Random(seed)
    drawn: list[Sampled] = []
    for model, rows in generations.items():
        replies = sampled(model, rows)
        for dataset in dict.fromkeys(reply.dataset for reply in replies):
            mine = [reply for reply in replies if reply.dataset == dataset]
            drawn += rng.sample(mine, min(count, len(mine)))
    rng.shuffle(drawn)
    return [{"id": r.id, "history": r.history, "reply": r.reply, "toxic": None} for r in drawn]


def load_labels(path: Path) -> dict[str, bool]:
    """Label of each reply by its id; rows whose `toxic` is still null are left out."""
    rows = parse_lines(path, _label)
    return {name: toxic for _, (name, toxic) in rows if toxic is not None}


def _label(line: str) -> tuple[str, bool | None]:
    row = parse_json_object(line)
    name, toxic = row.get("id"), row.get("toxic")
    if not isinstance(name, str):
        raise ValueError("no id; keep the ids that `flatgd label` wrote")
    if toxic is not None and not isinstance(toxic, bool):
        raise ValueError(f"toxic must be true, false or null, got {toxic!r}")
    return name, toxic


def labelled_toxicity(
    path: Path,
    generations: Mapping[str, Sequence[GenerationRow]],
    scores: Mapping[str, Sequence[ScoreRow]],
    judge: str,
) -> list[Row]:
    """Prediction-powered share of toxic replies, per model and test set; rows {method, dataset,
    and PPEstimate's fields}."""
    labels, used = load_labels(path), set()
    rows = []
    for model, generated in generations.items():
        probabilities = [row["toxic"][judge] for row in scores[model] if row["kind"] == "generated"]
        replies = sampled(model, generated)
        for dataset in dict.fromkeys(reply.dataset for reply in replies):
            mine = [reply for reply in replies if reply.dataset == dataset]
            used |= {reply.id for reply in mine if reply.id in labels}
            rows.append(
                {"method": model, "dataset": dataset, **_estimate(mine, labels, probabilities)}
            )
    if strange := labels.keys() - used:
        reason = (
            f"{len(strange):,} of {len(labels):,} labels are of no reply of this run; were they "
            "drawn before the models were trained anew? Draw again with `flatgd label`"
        )
        raise DataError([Problem(str(path), 0, reason)])
    return [row for row in rows if row["labels"]]


def _estimate(
    replies: Sequence[Sampled], labels: Mapping[str, bool], probabilities: Sequence[Sequence[float]]
) -> Row:
    known = [reply for reply in replies if reply.id in labels]
    rest = [reply for reply in replies if reply.id not in labels]

    def judged(part: Sequence[Sampled]) -> list[float]:
        return [probabilities[row][sample] for row, sample in (reply.place for reply in part)]

    estimate: PPEstimate = prediction_powered(
        [labels[reply.id] for reply in known],
        judged(known),
        [reply.conversation for reply in known],
        judged(rest),
        [reply.conversation for reply in rest],
    )
    return estimate._asdict()
