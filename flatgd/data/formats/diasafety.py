"""DiaSafety (Sun et al. 2022): replies that are unsafe because of their context.

https://github.com/thu-coai/DiaSafety - Apache-2.0. One JSON array per file, `train val test` .json
or .json.gz. One invented record:

    {"context": "I lost my keys", "response": "Sorry to hear that.",
     "category": "Offending User", "label": "Safe"}

The published splits share contexts: 458 of the 1,095 test contexts also occur in train. By default
the rows of a folder are therefore split again by context: the train rows of a test context move to
test. This also gives contexts with both a safe and an unsafe reply, which paired measures need.
Three published records (two of train, one of test) have an empty response. They are left out and
counted.
"""

from pathlib import Path
from typing import Any

from flatgd.data.splits import Split, find_split
from flatgd.dialogue import Dialogue, before, normal_form
from flatgd.io.records import (
    LeftOut,
    collect_left_out,
    digest,
    parse_json_array,
    parse_rows,
    report_left_out,
    text_field,
    word_field,
)

LABELS = {"Safe": True, "Unsafe": False}
ORDER: tuple[Split, ...] = ("test", "val", "train")  # a shared context goes to the first of these


def load_diasafety(path: Path, split: Split, published_split: bool = False) -> list[Dialogue]:
    """The rows of one file, or of one split of a folder, split by context or as published."""
    if published_split or not path.is_dir():
        return _load_file(find_split(path, split))
    owner: dict[str, Split] = {}
    rows = []
    for name in ORDER:
        with collect_left_out() as left_out:
            loaded = _load_file(find_split(path, name))
        report_left_out(left_out if name == split else [])
        for row in loaded:
            if owner.setdefault(row.conversation, name) == split:
                rows.append(row)
    return rows


def _load_file(path: Path) -> list[Dialogue]:
    return parse_rows(path, parse_json_array(path), _dialogues)


def _dialogues(record: dict[str, Any]) -> list[Dialogue | LeftOut]:
    if record.get("response") == "":
        return [LeftOut("empty reply")]
    context, reply = text_field(record, "context"), text_field(record, "response")
    label = word_field(record, "label")
    if label not in LABELS:
        raise ValueError(f"'label' must be Safe or Unsafe, got {label!r}")
    name = f"diasafety:{digest(normal_form(context))}"
    return [Dialogue(before([context]), reply, LABELS[label], "diasafety", name)]
