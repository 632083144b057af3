"""Replies that are labelled both safe and toxic: counts them and resolves them.

Several rows for one reply count as votes. Two rows hold the same reply if speaker, system message,
roles, history and reply are identical.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from flatgd.dialogue import Dialogue

Votes = Literal["keep", "majority", "drop"]


def count_contradictory(rows: Iterable[Dialogue]) -> int:
    """The number of replies that have rows of both labels."""
    return sum(0 < safe < count for safe, count in _tallies(rows).values())


def resolve_votes(
    rows: Sequence[Dialogue], votes: Votes
) -> tuple[list[Dialogue], list[tuple[str, Dialogue]]]:
    """Returns (rows kept, (rule, row) for each row left out).

    `majority` keeps the first row of each reply, with the majority's label, and leaves out ties.
    `drop` leaves out every row of a reply that has both labels. Rows without a label are kept.
    """
    if votes == "keep":
        return list(rows), []
    tallies = _tallies(rows)
    kept: list[Dialogue] = []
    dropped: list[tuple[str, Dialogue]] = []
    seen = set()
    for row in rows:
        if row.is_safe is None:
            kept.append(row)
            continue
        safe, count = tallies[_reply_key(row)]
        if votes == "drop":
            if 0 < safe < count:
                dropped.append(("labelled safe and toxic", row))
            else:
                kept.append(row)
        elif 2 * safe == count:
            dropped.append(("votes that tie", row))
        elif _reply_key(row) in seen:
            dropped.append(("further votes on a reply", row))
        else:
            seen.add(_reply_key(row))
            kept.append(replace(row, is_safe=2 * safe > count))
    return kept, dropped


def _tallies(rows: Iterable[Dialogue]) -> dict[Any, tuple[int, int]]:
    """(safe votes, all votes) of each labelled reply."""
    found: dict[Any, tuple[int, int]] = {}
    for row in rows:
        if row.is_safe is not None:
            safe, count = found.get(_reply_key(row), (0, 0))
            found[_reply_key(row)] = safe + row.is_safe, count + 1
    return found


def _reply_key(row: Dialogue) -> Any:
    return row.speaker, row.system, row.history, row.reply
