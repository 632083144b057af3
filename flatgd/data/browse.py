"""Data sets outside a recipe: whole, as published, for counting, looking at and converting."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flatgd.config.loading import set_field, validated
from flatgd.config.source import Source
from flatgd.data.sets import LOADERS
from flatgd.data.splits import SPLITS
from flatgd.dialogue import Dialogue, as_messages, normal_form
from flatgd.errors import DataError, RecipeError

HOLD_ALL_SPLITS = ("bbf",)


def load_splits(
    format_: str, paths: Sequence[str], overrides: Iterable[str] = ()
) -> dict[str, list[Dialogue]]:
    """Every row by split: of each file, or of a folder or file that has several splits.

    `overrides` are fields of a recipe's source, as "label=safe". Raises DataError or RecipeError.
    """
    if len(paths) > 1:
        names = [Path(path).name for path in paths]
        names = names if len(set(names)) == len(names) else list(paths)
        parts = (load_split(format_, path, None, overrides) for path in paths)
        return dict(zip(names, parts, strict=True))
    source = _source(format_, paths[0], None, overrides)
    if not source.path.is_dir() and format_ not in HOLD_ALL_SPLITS:
        return {source.path.name: LOADERS[source.format](source)}
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
    """Every row of one file or split, human turns and canned replies too."""
    source = _source(format_, path, split, overrides)
    return LOADERS[source.format](source)


def _source(format_: str, path: str, split: str | None, overrides: Iterable[str]) -> Source:
    raw: dict[str, Any] = {"name": format_, "format": format_, "path": path, "speaker": "all"}
    for override in overrides:
        set_field(raw, override)
    if unused := raw.keys() & {"share", "weight", "history_lines", "keep_canned", "votes"}:
        raise RecipeError(f"{min(unused)} is for recipes; here whole files are read as they are")
    if split is not None:
        raw["split"] = split
    return validated(Source, raw, Path(), f"{path} cannot be read as {format_}")


def draw(rows: Sequence[Dialogue], count: int, seed: int, label: str | None) -> list[Dialogue]:
    """At most `count` rows drawn by the seed, of one label ("safe", "toxic", "none") or of all."""
    wanted = {"safe": True, "toxic": False, "none": None}
    fitting = [row for row in rows if label is None or row.is_safe is wanted[label]]
    return random.Random(seed).sample(fitting, min(count, len(fitting)))


class Mask:
    """Hides every line that the data set does not itself label safe.

    >>> row = Dialogue(("hi",), "hello!", True, "a", "a")
    >>> Mask([row]).shown(row)
    ('[masked: 1 words]', 'hello!')
    """

    def __init__(self, rows: Iterable[Dialogue]):
        labels: dict[str, set[bool | None]] = {}
        for row in rows:
            labels.setdefault(normal_form(row.reply), set()).add(row.is_safe)
        self._safe = {line for line, found in labels.items() if found == {True}}

    def shown(self, row: Dialogue) -> tuple[str, ...]:
        """History and reply, line by line."""
        return tuple(
            line if normal_form(line) in self._safe else f"[masked: {len(line.split())} words]"
            for line in (*row.texts, row.reply)
        )


def to_row(row: Dialogue) -> dict[str, Any]:
    """A row of the jsonl format."""
    system = [{"role": "system", "content": row.system}] if row.system else []
    return {
        "prompt": [*system, *as_messages(row.history)],
        "completion": row.reply,
        "label": row.is_safe,
        "conversation": row.conversation,
        "speaker": row.speaker,
    }
