"""Replies that a model gave to the policy's own histories, as training rows.

A file sampled/NAME.jsonl has one history a line: its replies, P(toxic) of each by the judge in the
loop, the label that follows, and each reply's NLL under the model that gave it. A reply between the
judge's two thresholds has no label and teaches nothing.
"""

import math
import random
from collections.abc import Sequence

from flatgd.artifacts.rows import SampledRow
from flatgd.dialogue import Dialogue, as_turns


def judged_replies(rows: Sequence[SampledRow], seed: int) -> list[Dialogue]:
    """The replies with the judge's label, as many safe as toxic ones, drawn by `seed` (CRINGE)."""
    kinds = _by_label(rows)
    rng, count = random.Random(seed), min(map(len, kinds))
    return [dialogue for kind in kinds for dialogue in rng.sample(kind, count)]


def with_own_replies(
    data: Sequence[Dialogue], rows: Sequence[SampledRow], share: float, seed: int
) -> list[Dialogue]:
    """The rows of `data` with `share` of the safe replies sampled, drawn by `seed`: as many sampled
    ones as there are, and as many of the data's as that share leaves room for. The toxic replies
    are the sampled ones, and so many of the data's that the ratio of safe to toxic stays the same.
    """
    safe, toxic = ([row for row in data if row.is_safe is label] for label in (True, False))
    own, own_toxic = _by_label(rows)
    total = min(len(own) / share, len(safe) / (1 - share) if share < 1 else math.inf)
    rng = random.Random(seed)
    kept = rng.sample(safe, round(total * (1 - share))) + rng.sample(own, round(total * share))
    wanted = round(len(kept) * len(toxic) / len(safe)) - len(own_toxic)
    return [*kept, *own_toxic, *rng.sample(toxic, min(max(0, wanted), len(toxic)))]


def contrasting_pairs(rows: Sequence[SampledRow]) -> list[tuple[Dialogue, Dialogue]]:
    """(safe, toxic) replies to one history: with each toxic one the safe one next below it in
    likelihood; where all safe ones are likelier, the least likely of them (Click).

    So the safe reply is one that the model could say, and the pair is not in order already.
    """
    pairs = []
    for row, toxic in _places(rows, True):
        nll: list[float] = row["nll"]
        safe = [n for _, n in _places([row], False)]
        if safe:
            below = [n for n in safe if nll[n] > nll[toxic]]
            chosen = min(below, key=nll.__getitem__) if below else max(safe, key=nll.__getitem__)
            pairs.append((_dialogue(row, chosen), _dialogue(row, toxic)))
    return pairs


def _by_label(rows: Sequence[SampledRow]) -> tuple[list[Dialogue], list[Dialogue]]:
    """The safe replies and the toxic ones."""
    safe, toxic = (
        [_dialogue(row, n) for row, n in _places(rows, is_toxic)] for is_toxic in (False, True)
    )
    return safe, toxic


def _places(rows: Sequence[SampledRow], is_toxic: bool) -> list[tuple[SampledRow, int]]:
    """(row, number of the reply) of each reply with that label; empty replies teach nothing."""
    return [
        (row, n)
        for row in rows
        for n, reply in enumerate(row["replies"])
        if reply and row["toxic"][n] is is_toxic
    ]


def _dialogue(row: SampledRow, number: int) -> Dialogue:
    return Dialogue(
        as_turns(row["history"]),
        row["replies"][number],
        not row["toxic"][number],
        row["dataset"],
        row["conversation"],
        system=row["system"],
    )
