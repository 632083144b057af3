"""A strict reader of CSV and TSV files, in which a stray quote cannot join rows.

A cell that begins with a quote is quoted. It may hold separators, line breaks and doubled quotes,
and it ends with a quote directly before a separator, a line break or the end of the file. In any
other cell a quote is an ordinary character. Cells may have any length.

A stray quote at the start of a cell and another at the end of a later row's cell look like one
quoted cell. Such a cell is refused if each of its lines reads as a row of the table. A line reads
as a row if it has the right number of cells and if some column of these lines (usually the label)
holds only values that the column holds elsewhere. Python's csv module joins such rows silently.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flatgd.errors import DataError, Problem
from flatgd.io.text import read_text

_QUOTED = re.compile(r'"([^"]*(?:""[^"]*)*)"')
_LINE_END = re.compile(r"\r\n?|\n")
_BARE = {separator: re.compile(f"[{separator}\r\n]") for separator in (",", "\t")}
_ADVICE = "remove a stray quote, or write quotes inside a quoted cell twice"


class _Record(NamedTuple):
    """The cells of one row, or the error in their place, with its first and last line."""

    first: int
    last: int
    cells: list[str] | ValueError


def parse_table(
    path: Path, separator: str = ",", is_read: Callable[[str], bool] = lambda name: True
) -> Iterator[tuple[int, dict[str, str] | ValueError]]:
    """(line number, row) of a table with a header, for `parse_rows`.

    A row that cannot be read is yielded as a ValueError. Raises DataError if the header cannot be
    read, or if two columns have the same name up to white space. `is_read` says which columns are
    of interest; other columns may share a name, and the last of them wins.
    """
    text = read_text(path)
    head, *records = _records(text, separator, 1)
    if isinstance(head.cells, ValueError):
        raise DataError([Problem(str(path), head.first, str(head.cells))])
    names = head.cells
    counts = Counter(name.strip() for name in names if is_read(name.strip()))
    if twice := [name for name, count in counts.items() if count > 1]:
        reason = f"two columns are called {twice[0]!r:.40}; rename or remove one"
        raise DataError([Problem(str(path), head.first, reason)])
    if any(first < last for first, last, _ in records):
        records = list(_split_joined_rows(records, _LINE_END.split(text), separator, len(names)))
    for first, _, cells in records:
        if isinstance(cells, ValueError):
            yield first, cells
        elif len(cells) != len(names):
            reason = f"expected {len(names)} cells as in the header, got {len(cells)}"
            yield first, ValueError(reason)
        else:
            yield first, dict(zip(names, cells, strict=True))


def _records(text: str, separator: str, line: int) -> Iterator[_Record]:
    """The records of a text that begins at line `line` of a file. Empty lines are skipped.

    After an error, reading resumes on the line below the opening quote.
    """
    position = 0
    while position < len(text):
        end = _end_of_line(text, position)
        row = text[position : end.start]
        if '"' in row:
            record, position = _quoted(text, position, separator, line)
            yield record
            line = record.last + 1
            continue
        if row:
            yield _Record(line, line, row.split(separator))
        position, line = end.after, line + 1


class _End(NamedTuple):
    start: int
    after: int


def _end_of_line(text: str, position: int) -> _End:
    found = _LINE_END.search(text, position)
    return _End(found.start(), found.end()) if found else _End(len(text), len(text))


def _quoted(text: str, position: int, separator: str, line: int) -> tuple[_Record, int]:
    """The record at `position`, which holds a quote somewhere, and where the next record begins."""
    first, cells = line, []
    while True:
        if text.startswith('"', position):
            cell = _QUOTED.match(text, position)
            if cell is None or text[cell.end() : cell.end() + 1] not in ("", separator, "\r", "\n"):
                reason = f"the quoted cell that opens here is never closed; {_ADVICE}"
                if cell is not None:
                    reason = f"text follows the quote that closes the cell opened here; {_ADVICE}"
                return _Record(line, line, ValueError(reason)), _end_of_line(text, position).after
            cells.append(cell.group(1).replace('""', '"'))
            line += len(_LINE_END.findall(cell.group(1)))
            position = cell.end()
        else:
            end = _BARE[separator].search(text, position)
            stop = end.start() if end else len(text)
            cells.append(text[position:stop])
            position = stop
        if not text.startswith(separator, position):
            return _Record(first, line, cells), _end_of_line(text, position).after
        position += 1


def _split_joined_rows(
    records: Sequence[_Record], lines: Sequence[str], separator: str, columns: int
) -> Iterator[_Record]:
    """Split records that a pair of stray quotes joined.

    Each yields an error for its first line, and its other lines are read again as records.
    """
    known: list[set[str]] = [{"true", "false"} for _ in range(columns)]
    for first, last, cells in records:
        if first == last and not isinstance(cells, ValueError) and len(cells) == columns:
            for values, cell in zip(known, cells, strict=True):
                values.add(cell.casefold())
    for record in records:
        joined = lines[record.first - 1 : record.last]
        if len(joined) > 1 and _look_like_rows(joined, separator, known):
            reason = f"a quoted cell runs to line {record.last} over lines that are rows; {_ADVICE}"
            yield _Record(record.first, record.first, ValueError(reason))
            yield from _records("\n".join(joined[1:]), separator, record.first + 1)
        else:
            yield record


def _look_like_rows(lines: Sequence[str], separator: str, known: Sequence[set[str]]) -> bool:
    rows = [[cell.strip('"').casefold() for cell in line.split(separator)] for line in lines]
    if len(known) < 2 or any(len(row) != len(known) for row in rows):
        return False
    return any(
        all(cell and cell in values for cell in column)
        for column, values in zip(zip(*rows, strict=True), known, strict=True)
    )
