"""Score rows: what judges and scorer say of sampled replies, what a model says of given ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal, cast

from flatgd.artifacts.rows import DriftScores, GenerationRow, GivenScores, ReplyScores
from flatgd.data.behaviour import KINDS, behaviour
from flatgd.dialogue import Dialogue, Message, as_messages, as_turns
from flatgd.evaluation.diversity import distinct, tokenize
from flatgd.io.records import digest
from flatgd.judges.base import Judge, pairs_of
from flatgd.models.likelihood import ReplyLikelihood
from flatgd.models.speaker import Speaker

Advance = Callable[[int], None]


def generation_row(row: Dialogue, replies: list[str]) -> GenerationRow:
    """One history and its sampled replies, as in generations/NAME.jsonl."""
    return {
        "dataset": row.source,
        "conversation": row.conversation,
        "system": row.system,
        "history": as_messages(row.history),
        "replies": replies,
    }


def as_dialogues(generations: Sequence[GenerationRow]) -> list[Dialogue]:
    """Every reply of the rows with its history, in their order, without a label."""
    return [
        Dialogue(
            as_turns(row["history"]),
            reply,
            None,
            row["dataset"],
            row["conversation"],
            system=row["system"],
        )
        for row in generations
        for reply in row["replies"]
    ]


def reply_rows(
    kind: Literal["generated", "reference"],
    generations: Sequence[GenerationRow],
    judges: Mapping[str, Judge],
    scorer: Speaker | None,
    related: set[str],
    advance: Advance,
) -> list[ReplyScores]:
    """One score row a history: each reply's P(toxic), length, behaviour, likelihood under the
    scorer; in the data sets `related` also its relevance."""
    flat = as_dialogues(generations)
    pairs = pairs_of(flat)
    toxic = {name: iter(judge.score(pairs, advance).tolist()) for name, judge in judges.items()}
    scored = scorer.score(flat, advance) if scorer else [None] * len(flat)
    strange = _without_context(generations, flat, scorer, related, advance)
    likelihoods = iter(zip(scored, strange, strict=True))
    rows = []
    for row in generations:
        replies = row["replies"]
        of_replies = [next(likelihoods) for _ in replies]
        known = [own for own, _ in of_replies if own]
        acts = [behaviour(reply) for reply in replies]
        rows.append(
            cast(
                ReplyScores,
                {
                    "kind": kind,
                    "dataset": row["dataset"],
                    "conversation": row["conversation"],
                    "toxic": {
                        name: [round(next(probabilities), 6) for _ in replies]
                        for name, probabilities in toxic.items()
                    },
                    "words": [len(tokenize(reply)) for reply in replies],
                    "div1": distinct(replies, 1),
                    "div2": distinct(replies, 2),
                    **{act: [int(a[act]) for a in acts] for act in KINDS},
                    "nll": [round(own.nll, 5) for own in known],
                    "tokens": [own.tokens for own in known],
                    "relevance": [
                        round((other.nll - own.nll) / own.tokens, 5)
                        for own, other in of_replies
                        if own and other
                    ],
                },
            )
        )
    return rows


def _without_context(
    generations: Sequence[GenerationRow],
    flat: Sequence[Dialogue],
    scorer: Speaker | None,
    related: set[str],
    advance: Advance,
) -> list[ReplyLikelihood | None]:
    """Each reply's likelihood given another history of its data set: that of the next conversation
    there."""
    if scorer is None:
        return [None] * len(flat)
    replies, swapped = iter(flat), []
    for row, other in zip(generations, _others(generations, related), strict=True):
        for _ in row["replies"]:
            reply = next(replies)
            swapped.append(replace(reply, history=as_turns(other)) if other is not None else None)
    found = iter(scorer.score([row for row in swapped if row is not None], advance))
    return [None if row is None else next(found) for row in swapped]


def _others(generations: Sequence[GenerationRow], related: set[str]) -> list[list[Message] | None]:
    """For each row the history of the next row of its data set that is of another conversation."""
    parts: dict[str, list[int]] = {name: [] for name in related}
    for place, row in enumerate(generations):
        if row["dataset"] in related:
            parts[row["dataset"]].append(place)
    others: list[list[Message] | None] = [None] * len(generations)
    for places in parts.values():
        following: int | None = None
        for here, there in reversed(list(pairwise([*places, *places]))):
            if generations[here]["conversation"] != generations[there]["conversation"]:
                following = there
            if following is not None:
                others[here] = generations[following]["history"]
    return others


def drift_rows(
    backbone: Speaker, model: Speaker, generations: Sequence[GenerationRow], advance: Advance
) -> list[DriftScores]:
    """How far a model has moved from the backbone: one score row for the first reply that the
    backbone gave to each history. Empty for a model with other tokens, which has no divergence."""
    tokenizers = [speaker.dialogue_format.tokenizer for speaker in (backbone, model)]
    if tokenizers[0].get_vocab() != tokenizers[1].get_vocab():
        return []
    firsts: list[GenerationRow] = [{**row, "replies": row["replies"][:1]} for row in generations]
    rows = as_dialogues(firsts)
    return [
        {
            "kind": "drift",
            "dataset": row.source,
            "conversation": row.conversation,
            "kl": round(found.kl, 5),
            "tokens": found.tokens,
        }
        for row, found in zip(rows, backbone.kl_to(model, rows, advance), strict=True)
    ]


def given_rows(speaker: Speaker, rows: Sequence[Dialogue], advance: Advance) -> list[GivenScores]:
    """One score row a given reply: its likelihood under the model; `labelled` where a human has
    labelled it, else `ordinary`."""
    likelihoods = speaker.score(rows, advance)
    return [
        {
            "kind": "ordinary" if row.is_safe is None else "labelled",
            "dataset": row.source,
            "conversation": row.conversation,
            "context": digest("\n".join(row.texts)),
            "is_safe": row.is_safe,
            "nll": score.nll,
            "tokens": score.tokens,
        }
        for row, score in zip(rows, likelihoods, strict=True)
    ]
