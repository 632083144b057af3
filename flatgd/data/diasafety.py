"""DiaSafety (Sun et al. 2022): replies that are unsafe because of their context.

https://github.com/thu-coai/DiaSafety - Apache-2.0. A JSON array a file, `train val test` .json or
.json.gz. One invented record:

    {"context": "I lost my keys", "response": "Sorry to hear that.",
     "category": "Offending User", "label": "Safe"}

The published splits share contexts: 458 of the 1,095 test contexts also stand in train. So by
default the rows are split again by context: a context of test takes its train rows along to test.
That also gives contexts with both a safe and an unsafe reply, which paired measures need. Three
published records (two of train, one of test) have an empty response; they are left out.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from flatgd.errors import DataError, Problem
from flatgd.records import Dialogue, read_text, text_field

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = (
    "test",
    "val",
    "train",
)  # a shared context goes to the first that has it
LABELS = {"Safe": True, "Unsafe": False}


def load_diasafety(folder: Path, split: Split, published_split: bool = False) -> list[Dialogue]:
    """The rows of one split; `published_split` keeps the leaking original instead."""
    if published_split:
        return _load_file(folder, split)
    owner: dict[str, Split] = {}
    rows = []
    for name in SPLITS:
        for row in _load_file(folder, name):
            if owner.setdefault(row.conversation, name) == split:
                rows.append(row)
    return rows


def _load_file(folder: Path, split: Split) -> list[Dialogue]:
    plain = folder / f"{split}.json"
    path = plain if plain.exists() else folder / f"{split}.json.gz"
    rows, problems = [], []
    for line, record in _array(path):
        if isinstance(record, dict) and record.get("response") == "":
            continue
        try:
            rows.append(_dialogue(record))
        except ValueError as error:
            problems.append(Problem(str(path), line, str(error)))
    if problems:
        raise DataError(problems)
    return rows


def _dialogue(record: Any) -> Dialogue:
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, got {type(record).__name__}")
    context, reply = text_field(record, "context"), text_field(record, "response")
    label = text_field(record, "label")
    if label not in LABELS:
        raise ValueError(f"'label' must be Safe or Unsafe, got {label!r}")
    name = hashlib.sha256(context.encode()).hexdigest()[:12]
    return Dialogue((context,), reply, LABELS[label], "diasafety", f"diasafety:{name}")


def _array(path: Path) -> Iterator[tuple[int, Any]]:
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
        yield line, record
        line += text.count("\n", position, end)
        position = end
