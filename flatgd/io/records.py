"""Reading and writing files of records: JSON, JSON lines, and plain text lines."""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, Problem
from flatgd.io.text import read_text

Record = TypeVar("Record")
_SURROGATE = re.compile("[\ud800-\udfff]")


def checked_text(text: str) -> str:
    """Return the text unchanged. ValueError if it holds a lone surrogate."""
    if not text.isascii() and _SURROGATE.search(text):
        raise ValueError("a lone surrogate (half of a surrogate pair), which is not valid text")
    return text


def clean_text(text: str) -> str:
    """Collapse white space to single spaces and strip the ends. ValueError as in `checked_text`.

    >>> clean_text("  a\\t b  ")
    'a b'
    """
    return " ".join(checked_text(text).split())


_bad_rows: ContextVar[list[Problem] | None] = ContextVar("left_out", default=None)


@contextmanager
def collect_bad_rows(wanted: bool = True) -> Iterator[list[Problem]]:
    """Inside the block, skip rows that cannot be read and collect their problems in this list.

    With `wanted` False, such rows raise DataError as usual.
    """
    found: list[Problem] = []
    token = _bad_rows.set(found if wanted else None)
    try:
        yield found
    finally:
        _bad_rows.reset(token)


KEPT = " (the row is kept)"  # ends what is worth a note though nothing is left out


class LeftOut(NamedTuple):
    """Stands for a part of a row that a parser deliberately does not use, or uses with a doubt."""

    reason: str

    @property
    def is_kept(self) -> bool:
        return self.reason.endswith(KEPT)


PAIR_READ = LeftOut(
    f"chosen read as safe and rejected as toxic, though both may be one of them{KEPT}"
)


_left_out: ContextVar[list[Problem] | None] = ContextVar("left_out", default=None)


@contextmanager
def collect_left_out() -> Iterator[list[Problem]]:
    """Inside the block, collect what loaders leave out on purpose, such as empty replies."""
    found: list[Problem] = []
    token = _left_out.set(found)
    try:
        yield found
    finally:
        _left_out.reset(token)


def report_left_out(problems: list[Problem]) -> None:
    """Hand rows that a loader left out to `collect_left_out`, if anyone collects them."""
    found = _left_out.get()
    if found is not None:
        found += problems


def report_problems(problems: list[Problem]) -> None:
    """Raise DataError for rows that cannot be read, or hand them to `collect_bad_rows`."""
    found = _bad_rows.get()
    if found is not None:
        found += problems
    elif problems:
        raise DataError(problems)


def digest(text: str) -> str:
    """The first 12 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def parse_lines(path: Path, parse: Callable[[str], Record]) -> list[tuple[int, Record]]:
    """(line number, parsed line) for every line that is not blank.

    `parse` raises ValueError with a reason. One DataError reports all of them.
    """
    records, problems = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append((number, parse(line.rstrip("\r"))))
        except ValueError as error:
            problems.append(Problem(str(path), number, short_reason(error)))
    report_problems(problems)
    return records


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and not a boolean."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)


def short_reason(error: ValueError) -> str:
    """An error's text for a message: printable, and shortened in the middle if a file made it long.

    >>> len(short_reason(ValueError("x" * 10_000)))
    603
    """
    text = str(error).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= 600 else f"{text[:300]}...{text[-300:]}"


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for json: the object, or ValueError if a key occurs twice in it.

    Python's json keeps the last value of a repeated key, so one of two labels would win silently.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(_repeated_key(pairs))
    return found


def _repeated_key(pairs: list[tuple[str, Any]]) -> str:
    (key, times), *_ = Counter(key for key, _ in pairs).most_common(1)
    return f"the key {key!r:.40} occurs {times} times in one JSON object; keep one"


_decoder = json.JSONDecoder(object_pairs_hook=unique_keys)  # made once, not once a line


def _loads(text: str) -> Any:
    if text.startswith("\ufeff"):
        return json.loads(text)  # raises; names the byte order mark
    return _decoder.decode(text)


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse one JSON object. ValueError says what is wrong in a few words."""
    try:
        value = _loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {type(value).__name__}")
    return value


def parse_json(path: Path) -> Iterable[tuple[int, Any]]:
    """(line number, element) of a JSON array, or (line number, object) of JSON lines.

    The first character of the file decides which.
    """
    text = read_text(path).lstrip()
    if text.startswith("["):
        return parse_json_array(path)
    first = text.split("\n", 1)[0]
    try:
        json.loads(first)
    except (ValueError, RecursionError) as error:
        if text.startswith("{") and _is_one_object(text):
            reason = "one JSON object over several lines; expected an array, or one object per line"
            raise DataError([Problem(str(path), 1, reason)]) from error
    return parse_lines(path, parse_json_object)


def _is_one_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def parse_json_array(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, element) of a JSON array. The line numbers locate errors in the file.

    An element with a repeated key is yielded as a ValueError, for `parse_rows`.
    """
    repeated: list[str] = []

    def as_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.append(_repeated_key(pairs))
        return found

    text, decoder = read_text(path), json.JSONDecoder(object_pairs_hook=as_object)
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
        yield line, ValueError(repeated[0]) if repeated else record
        repeated.clear()
        line += text.count("\n", position, end)
        position = end


def _refuse_rest(path: Path, text: str, position: int) -> None:
    rest = text[position:]
    if rest.strip():
        line = text.count("\n", 0, len(text) - len(rest.lstrip())) + 1
        reason = "more text after the end of the JSON array; a file holds one array"
        raise DataError([Problem(str(path), line, reason)])


def parse_rows(
    path: Path,
    rows: Iterable[tuple[int, Any]],
    parse: Callable[[dict[str, Any]], Sequence[Record | LeftOut]],
) -> list[Record]:
    """Parse each (line number, object) into records. One DataError reports all reasons.

    A row that could not be read is passed as a ValueError in the object's place. Dialogues are
    given their file and line. LeftOut goes to `collect_left_out`.
    """
    records: list[Record] = []
    problems, left_out = [], []
    name = str(path)
    for line, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object, got {type(row).__name__}")
            found = parse(row)
        except ValueError as error:
            problems.append(Problem(name, line, short_reason(error)))
            continue
        kept = [record for record in found if not isinstance(record, LeftOut)]
        left_out += [Problem(name, line, r.reason) for r in found if isinstance(r, LeftOut)]
        set_location(kept, f"{name}:{line}")
        records += kept
    report_problems(problems)
    report_left_out(left_out)
    return records


def set_location(records: Iterable[Any], where: str) -> None:
    """Record the file and line of Dialogues that were just read."""
    for record in records:
        if isinstance(record, Dialogue):
            object.__setattr__(record, "where", where)


def text_field(row: Mapping[str, Any], key: str) -> str:
    """A required string of a row, unchanged. ValueError if it is missing, blank or not text."""
    if key not in row:
        raise ValueError(f"no {key!r}; the keys are {', '.join(map(repr, row)) or 'none'}")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be text, got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{key!r} is empty")
    return checked_text(value)


def word_field(row: Mapping[str, Any], key: str) -> str:
    """A required label, id or name of a row: `text_field` with white space collapsed."""
    return clean_text(text_field(row, key))


def read_jsonl(path: Path) -> Iterator[Any]:
    """The rows of a JSONL file that flatgd wrote, which may be empty."""
    if path.exists() and path.stat().st_size == 0:
        return
    for _, row in parse_lines(path, parse_json_object):
        yield row


def _json_line(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def json_lines(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as JSON lines, one per line."""
    return "".join(map(_json_line, rows))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_json_line(row) for row in rows)


def printable(text: str) -> str:
    """The text with control characters replaced, so that a terminal does not act on them."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
