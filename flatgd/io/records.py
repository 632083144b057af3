"""How files of records are read and written."""

import bz2
import gzip
import hashlib
import json
import lzma
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, Problem

Record = TypeVar("Record")
UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
    ".bz2": bz2.decompress,
}
_BEGINNINGS = {b"\x1f\x8b": ".gz", b"\xfd7zXZ\x00": ".xz", b"BZh": ".bz2"}
_OTHER_KINDS = {
    b"\x28\xb5\x2f\xfd": "packed with zstd; unpack it first: zstd -d FILE",
    b"PAR1": "a Parquet file; write it as JSON lines first: "
    "pandas.read_parquet(FILE).to_json('rows.jsonl', orient='records', lines=True)",
    b"ARROW1": "an Arrow file; write it as JSON lines first: "
    "datasets.Dataset.from_file(FILE).to_json('rows.jsonl')",
    b"PK\x03\x04": "a ZIP archive or an Excel sheet; unpack it, or save it as CSV",
}


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
def collect_bad_rows(wanted: bool = True) -> Iterator[list[Problem]]:
    """Inside the block, if so wanted, rows with a fault are left out, and told in this list."""
    found: list[Problem] = []
    token = _left_out.set(found if wanted else None)
    try:
        yield found
    finally:
        _left_out.reset(token)


def tell(problems: list[Problem]) -> None:
    """Rows that cannot be read: DataError, unless they are being left out."""
    found = _left_out.get()
    if found is not None:
        found += problems
    elif problems:
        raise DataError(problems)


def digest(text: str) -> str:
    """A short name for a text, the same everywhere."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def unpacked_name(name: str) -> str:
    """The name of a file without .gz, .xz or .bz2.

    >>> unpacked_name("rows.jsonl.gz")
    'rows.jsonl'
    """
    stem, _, last = name.rpartition(".")
    return stem if f".{last.lower()}" in UNPACK else name


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, plain or packed (UNPACK). DataError when it cannot be read."""
    try:
        raw = path.read_bytes()
        for beginning, reason in _OTHER_KINDS.items():
            if raw.startswith(beginning):
                raise DataError([Problem(str(path), 0, reason)])
        packed = (kind for beginning, kind in _BEGINNINGS.items() if raw.startswith(beginning))
        kind = path.suffix.lower() if path.suffix.lower() in UNPACK else next(packed, None)
        text = (UNPACK[kind](raw) if kind else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError([Problem(str(path), 0, "no such file")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError([Problem(str(path), line, "not UTF-8; convert the file first")]) from None
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
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
    tell(problems)
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


def parse_json(path: Path) -> Iterable[tuple[int, Any]]:
    """(line number, element) of a JSON array, or (line number, object) of JSON lines, told apart by
    how the file begins."""
    text = read_text(path).lstrip()
    if text.startswith("["):
        return parse_json_array(path)
    first = text.split("\n", 1)[0]
    try:
        json.loads(first)
    except (ValueError, RecursionError) as error:
        if text.startswith("{") and _is_one_object(text):
            reason = "one JSON object over several lines; expected an array or one object a line"
            raise DataError([Problem(str(path), 1, reason)]) from error
    return parse_lines(path, parse_json_object)


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


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
            _refuse_rest(path, text, position + 1)
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


def _refuse_rest(path: Path, text: str, position: int) -> None:
    rest = text[position:]
    if rest.strip():
        line = text.count("\n", 0, len(text) - len(rest.lstrip())) + 1
        reason = "more text after the end of the JSON array; one file holds one array"
        raise DataError([Problem(str(path), line, reason)])


def parse_rows(
    path: Path, rows: Iterable[tuple[int, Any]], parse: Callable[[dict[str, Any]], list[Record]]
) -> list[Record]:
    """What `parse` makes of each (line number, object); all reasons in one DataError.

    A row that cannot be read is a ValueError in the object's place. Dialogues learn where they
    stand.
    """
    records: list[Record] = []
    problems = []
    name = str(path)
    for line, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, got {type(row).__name__}")
            found = parse(row)
        except ValueError as error:
            problems.append(Problem(name, line, str(error)))
            continue
        stands_at(found, f"{name}:{line}")
        records += found
    tell(problems)
    return records


def stands_at(records: Iterable[Any], where: str) -> None:
    """Tell Dialogues, fresh from a file, the file and line they stand at."""
    for record in records:
        if isinstance(record, Dialogue):
            object.__setattr__(record, "where", where)


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


def read_jsonl(path: Path) -> Iterator[Any]:
    """The rows of one of our own JSONL files, which may have none."""
    if path.exists() and path.stat().st_size == 0:
        return
    for _, row in parse_lines(path, parse_json_object):
        yield row


def _json_line(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    """A line a row."""
    return "".join(map(_json_line, rows))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_json_line(row) for row in rows)


def printable(text: str) -> str:
    """Without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
