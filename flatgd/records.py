"""How files of records are read and written."""

import csv
import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from flatgd.errors import DataError, Problem

Record = TypeVar("Record")


def checked_text(text: str) -> str:
    """The text as it is; ValueError where no encoding can write it."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("half of a surrogate pair, which no encoding can write")
    return text


def clean_text(text: str) -> str:
    """White space folded to single spaces, ends stripped. ValueError as in `checked_text`.

    >>> clean_text("  a\\t b  ")
    'a b'
    """
    return " ".join(checked_text(text).split())


_left_out: ContextVar[list[Problem] | None] = ContextVar("left_out", default=None)


@contextmanager
def leaving_out(wanted: bool = True) -> Iterator[list[Problem]]:
    """Inside the block, if so wanted, rows with a fault are left out, and told in this list."""
    found: list[Problem] = []
    token = _left_out.set(found if wanted else None)
    try:
        yield found
    finally:
        _left_out.reset(token)


def _tell(problems: list[Problem]) -> None:
    """Rows that cannot be read: DataError, unless they are being left out."""
    found = _left_out.get()
    if found is not None:
        found += problems
    elif problems:
        raise DataError(problems)


def digest(text: str) -> str:
    """A short name for a text, the same everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, plain or .gz. Raises DataError when it cannot be read."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError([Problem(str(path), 0, "no such file")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError([Problem(str(path), line, "not UTF-8; convert the file first")]) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError([Problem(str(path), 0, f"cannot be read: {error}")]) from None
    if not text.strip():
        raise DataError([Problem(str(path), 0, "the file is empty")])
    return text


def parse_lines(path: Path, parse: Callable[[str], Record]) -> list[tuple[int, Record]]:
    """(line number, parsed line) of every line that is not blank.

    `parse` raises ValueError with a reason; all reasons are collected into one DataError.
    """
    records, problems = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append((number, parse(line.rstrip("\r"))))
        except ValueError as error:
            problems.append(Problem(str(path), number, str(error)))
    _tell(problems)
    return records


def is_number(value: Any) -> bool:
    """A finite number, and no boolean."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def parse_json_object(text: str) -> dict[str, Any]:
    """One JSON object; ValueError says what is wrong with it in a few words."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def parse_json_array(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, element) of a JSON array, so that a fault can be told by its line."""
    text, decoder = read_text(path), json.JSONDecoder()
    position, line = text.find("[") + 1, 1
    if text[:position].strip() != "[":
        raise DataError([Problem(str(path), 1, "expected a JSON array")])
    line += text.count("\n", 0, position)
    while True:
        start = position
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line += text.count("\n", start, position)
        if position < len(text) and text[position] == "]":
            return
        try:
            record, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            problem = Problem(str(path), error.lineno, f"not valid JSON ({error.msg})")
            raise DataError([problem]) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; depth
            raise DataError([Problem(str(path), line, f"unreadable JSON ({error})")]) from None
        yield line, record
        line += text.count("\n", position, end)
        position = end


def parse_table(path: Path, separator: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with a header."""
    reader = csv.DictReader(StringIO(read_text(path), newline=""), delimiter=separator)
    try:
        columns = len(reader.fieldnames or ())
        for row in reader:
            if None in row or None in row.values():
                reason = f"expected {columns} cells as in the header"
                raise DataError([Problem(str(path), reader.line_num, reason)])
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError([Problem(str(path), reader.line_num, str(error))]) from None


def parse_rows(
    path: Path, rows: Iterable[tuple[int, Any]], parse: Callable[[dict[str, Any]], list[Record]]
) -> list[Record]:
    """What `parse` makes of each (line number, JSON object); all reasons in one DataError."""
    records: list[Record] = []
    problems = []
    for line, row in rows:
        try:
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, got {type(row).__name__}")
            records += parse(row)
        except ValueError as error:
            problems.append(Problem(str(path), line, str(error)))
    _tell(problems)
    return records


def text_field(row: Mapping[str, Any], key: str) -> str:
    """A required string of a row, as written and not blank; ValueError says what came."""
    if key not in row:
        raise ValueError(f"no {key!r}; the keys are {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{key!r} is empty")
    return checked_text(value)


def word_field(row: Mapping[str, Any], key: str) -> str:
    """A required label, id or name of a row: `text_field` with its white space folded."""
    return clean_text(text_field(row, key))


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one of our own JSONL files, which may have none."""
    if path.exists() and path.stat().st_size == 0:
        return
    for _, row in parse_lines(path, parse_json_object):
        yield row


def _json_line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """A line a row."""
    return "".join(map(_json_line, rows))


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_json_line(row) for row in rows)


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
