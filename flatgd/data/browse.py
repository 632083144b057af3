"""Data sets outside a recipe, complete and as published: to count, inspect and convert them."""

import errno
import os
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flatgd.config.loading import set_field, validated
from flatgd.config.source import Source
from flatgd.data.sets import read_source
from flatgd.data.splits import SPLITS
from flatgd.dialogue import Dialogue, as_messages, normal_form
from flatgd.errors import DataError, RecipeError, UsageError

ALL_SPLITS_IN_ONE_FILE = ("bbf",)


def load_splits(
    format_: str, paths: Sequence[str], overrides: Iterable[str] = ()
) -> dict[str, list[Dialogue]]:
    """All rows by split: one split per file, or the splits of one folder or file.

    `overrides` set fields of a recipe's source, such as "label=safe". Raises DataError, or
    RecipeError for a field that does not fit.
    """
    if len(paths) > 1:
        names = [Path(path).name for path in paths]
        names = names if len(set(names)) == len(names) else list(paths)
        parts = (load_split(format_, path, None, overrides) for path in paths)
        return dict(zip(names, parts, strict=True))
    source = _source(format_, paths[0], None, overrides)
    if not source.file.is_dir() and format_ not in ALL_SPLITS_IN_ONE_FILE:
        return {source.file.name: read_source(source)}
    found, problems = {}, []
    for split in SPLITS:
        try:
            found[split] = load_split(format_, paths[0], split, overrides)
        except DataError as error:
            problems += error.problems
    if not found or any(problem.line for problem in problems):
        raise DataError(problems)
    return {str(split): rows for split, rows in found.items()}


def load_split(
    format_: str, path: str, split: str | None, overrides: Iterable[str] = ()
) -> list[Dialogue]:
    """All rows of one file or split, human turns and canned replies included."""
    source = _source(format_, path, split, overrides)
    return read_source(source)


def check_path(path: str) -> None:
    """Raise UsageError for a path that no file can have: NUL, an unknown user, a name too long."""
    try:
        os.stat(Path(path).expanduser())
    except (RuntimeError, ValueError) as error:  # ~nobody, NUL
        raise UsageError(f"{path!r} is not a path: {error}") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise UsageError(f"{path!r:.80} is not a path: {error.strerror}") from None


def _source(format_: str, path: str, split: str | None, overrides: Iterable[str]) -> Source:
    check_path(path)
    raw: dict[str, Any] = {"name": format_, "format": format_, "path": path, "speaker": "all"}
    for override in overrides:
        set_field(raw, override)
    if unused := raw.keys() & {"share", "weight", "history_lines", "keep_canned", "votes"}:
        raise RecipeError(
            f"{min(unused)} has an effect in recipes only; `flatgd data` reads complete files"
        )
    if split is not None:
        raw["split"] = split
    return validated(Source, raw, Path(), f"{path} cannot be read as {format_}")


def sample_rows(
    rows: Sequence[Dialogue], count: int, seed: int, label: str | None
) -> list[Dialogue]:
    """At most `count` random rows, of one label ("safe", "toxic", "none") or of any."""
    wanted = {"safe": True, "toxic": False, "none": None}
    fitting = [row for row in rows if label is None or row.is_safe is wanted[label]]
    return random.Random(seed).sample(fitting, min(count, len(fitting)))


class TextMask:
    """Masks every line of a dialogue that the data do not label safe.

    A line is shown if it is the reply of a row, and all rows with that reply are labelled safe.

    >>> row = Dialogue(("hi",), "hello!", True, "a", "a")
    >>> TextMask([row]).apply(row)
    ('[masked: 1 words]', 'hello!')
    """

    def __init__(self, rows: Iterable[Dialogue]):
        labels: dict[str, set[bool | None]] = {}
        for row in rows:
            labels.setdefault(normal_form(row.reply), set()).add(row.is_safe)
        self._safe = {line for line, found in labels.items() if found == {True}}

    def apply(self, row: Dialogue) -> tuple[str, ...]:
        """The texts of history and reply, masked where needed."""
        return tuple(
            line if normal_form(line) in self._safe else f"[masked: {len(line.split())} words]"
            for line in (*row.texts, row.reply)
        )


def to_row(row: Dialogue) -> dict[str, Any]:
    """The dialogue as a row of the jsonl format."""
    system = [{"role": "system", "content": row.system}] if row.system else []
    return {
        "prompt": [*system, *as_messages(row.history)],
        "completion": row.reply,
        "label": row.is_safe,
        "conversation": row.conversation,
        "speaker": row.speaker,
    }
