"""One reply labelled both safe and toxic: how often, and what becomes of it.

Several marks of one reply, a row each, are votes. Replies are the same where speaker, system
message, roles, history and reply are the same as written.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from flatgd.dialogue import Dialogue

Votes = Literal["keep", "majority", "drop"]


def both_ways(rows: Iterable[Dialogue]) -> int:
    """How many replies have rows of both labels."""
    return sum(0 < safe < count for safe, count in _tallies(rows).values())


def settled(
    rows: Sequence[Dialogue], votes: Votes
) -> tuple[list[Dialogue], list[tuple[str, Dialogue]]]:
    """The rows, and those that were left out, each with the rule. `majority`: of the labelled rows
    of one reply the first, with the label of most; none where as many say safe as toxic. `drop`: no
    row of a reply that has both labels. Rows without a label stay."""
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
        safe, count = tallies[_reply(row)]
        if votes == "drop":
            if 0 < safe < count:
                dropped.append(("labelled safe and toxic", row))
            else:
                kept.append(row)
        elif 2 * safe == count:
            dropped.append(("votes that tie", row))
        elif _reply(row) in seen:
            dropped.append(("further votes on a reply", row))
        else:
            seen.add(_reply(row))
            kept.append(replace(row, is_safe=2 * safe > count))
    return kept, dropped


def _tallies(rows: Iterable[Dialogue]) -> dict[Any, tuple[int, int]]:
    """(rows that say safe, rows) of each labelled reply."""
    found: dict[Any, tuple[int, int]] = {}
    for row in rows:
        if row.is_safe is not None:
            safe, count = found.get(_reply(row), (0, 0))
            found[_reply(row)] = safe + row.is_safe, count + 1
    return found


def _reply(row: Dialogue) -> Any:
    return row.speaker, row.system, row.history, row.reply
