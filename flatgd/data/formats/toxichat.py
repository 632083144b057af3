"""ToxiChat (Baheti et al. 2021): Reddit threads with replies of DialoGPT and GPT-3, labelled.

https://github.com/abaheti95/ToxiChat - CC BY-SA 4.0. JSON lines, `train dev test` .jsonl. Each
column is an object, or the JSON text of one. A shortened invented record:

    {"reddit_thread": [{"turn_id": 1, "text": "Title: my new bike", "offense_label": "Safe"}],
     "final_dgpt_response": {"turn_id": 2, "text": "nice colour!", "offense_label": "Safe"},
     "final_gpt3_response": {"turn_id": 2, "text": "I like it.", "offense_label": "Safe"}}

The models' replies are rows of speaker bot, the thread's own turns rows of speaker human. Ten
published replies are empty; they are left out and counted.
"""

import json
from pathlib import Path
from typing import Any

from flatgd.data.splits import Split, find_split
from flatgd.dialogue import Dialogue, before, normal_form
from flatgd.io.records import (
    LeftOut,
    digest,
    parse_json_object,
    parse_lines,
    parse_rows,
    text_field,
    unique_keys,
    word_field,
)

LABELS = {"Safe": True, "Offensive": False}
REPLIES = ("final_dgpt_response", "final_gpt3_response")


def load_toxichat(path: Path, split: Split) -> list[Dialogue]:
    """Replies and thread turns of one file or one split of a folder."""
    path = find_split(path, split)
    return parse_rows(path, parse_lines(path, parse_json_object), _dialogues)


def _dialogues(row: dict[str, Any]) -> list[Dialogue | LeftOut]:
    thread = [_turn(turn) for turn in _column(row, "reddit_thread", list)]
    lines = tuple(text for text, _ in thread)
    name = f"toxichat:{digest(normal_form(lines[0]) if lines else '')}"
    rows: list[Dialogue | LeftOut] = [
        Dialogue(before(lines[:index], "human"), text, label, "toxichat", name, "human")
        for index, (text, label) in enumerate(thread)
    ]
    for key in REPLIES:
        reply = _column(row, key, dict)
        if not str(reply.get("text", "")).strip():
            rows.append(LeftOut("empty reply"))
        else:
            text, label = _turn(reply)
            rows.append(Dialogue(before(lines), text, label, "toxichat", name))
    return rows


def _column(row: dict[str, Any], key: str, kind: type) -> Any:
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=unique_keys)
        except json.JSONDecodeError as error:
            raise ValueError(f"{key!r} is text but not JSON ({error.msg})") from None
    if not isinstance(value, kind):
        wanted = "an array" if kind is list else "an object"
        raise ValueError(f"{key!r} must be {wanted}, got {type(value).__name__}")
    return value


def _turn(turn: Any) -> tuple[str, bool]:
    if not isinstance(turn, dict):
        raise ValueError(f"a turn must be an object, got {type(turn).__name__}")
    label = word_field(turn, "offense_label")
    if label not in LABELS:
        raise ValueError(f"'offense_label' must be Safe or Offensive, got {label!r}")
    return text_field(turn, "text"), LABELS[label]
