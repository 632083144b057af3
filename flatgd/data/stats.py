"""Statistics of a data set: counts by split, and the overlap of two splits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

from flatgd.data.canned import is_canned
from flatgd.dialogue import Dialogue, normal_form


class Counts(NamedTuple):
    """The counts of one split. Lines count the turns of a history, words those of a reply.

    `duplicates` are rows whose history and reply, in normal form, occur in an earlier row.
    `contradictions` are duplicates with the opposite label.
    """

    split: str
    rows: int
    safe: int
    toxic: int
    unlabelled: int
    conversations: int
    bot: int
    human: int
    lines_median: float
    lines_max: int
    words_median: float
    words_p95: int
    canned: int
    duplicates: int
    contradictions: int


class Overlap(NamedTuple):
    """How many rows of the second split share something with the first: the conversation, a
    non-empty history, or the last turn and reply."""

    first: str
    second: str
    conversations: int
    histories: int
    replies: int


def count(split: str, rows: Sequence[Dialogue]) -> Counts:
    """The counts of one split, zeros if it is empty."""
    labels = Counter(row.is_safe for row in rows)
    speakers = Counter(row.speaker for row in rows)
    lines = [len(row.history) for row in rows] or [0]
    words = sorted(len(row.reply.split()) for row in rows) or [0]
    labelled = [row for row in rows if row.is_safe is not None]
    first: dict[object, bool | None] = {}
    other_label = sum(
        first.setdefault(row.normal_form, row.is_safe) != row.is_safe for row in labelled
    )
    return Counts(
        split,
        len(rows),
        labels[True],
        labels[False],
        labels[None],
        len({row.conversation for row in rows}),
        speakers["bot"],
        speakers["human"],
        median(lines),
        max(lines),
        median(words),
        words[int(0.95 * (len(words) - 1))],
        sum(is_canned(row.reply) for row in rows),
        len(rows) - len({row.normal_form for row in rows}),
        other_label,
    )


def overlaps(splits: Mapping[str, Sequence[Dialogue]]) -> list[Overlap]:
    """The overlap of each pair of splits."""
    found = []
    for one, other in combinations(splits, 2):
        keys = [_keys(row) for row in splits[one]]
        conversations, histories, replies = map(set, zip(*keys, strict=True)) if keys else ((),) * 3
        others = [_keys(row) for row in splits[other]]
        found.append(
            Overlap(
                one,
                other,
                sum(conversation in conversations for conversation, _, _ in others),
                sum(bool(history) and history in histories for _, history, _ in others),
                sum(reply in replies for _, _, reply in others),
            )
        )
    return found


def _keys(row: Dialogue) -> tuple[str, tuple[str, ...], tuple[str, str]]:
    return row.conversation, tuple(map(normal_form, row.texts)), row.exchange
