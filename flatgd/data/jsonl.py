"""Your own data: JSON lines with `prompt`, `completion` and the boolean `label`, true = safe.

One invented record, and one with several turns and the optional keys:

    {"prompt": "how are you?", "completion": "fine, thanks.", "label": true}
    {"prompt": ["hi", "hello!", "how are you?"], "completion": "fine, thanks.", "label": true,
     "conversation": "c17", "speaker": "bot"}

Rows without `conversation` that open with the same line count as one conversation.
"""

import hashlib
from pathlib import Path
from typing import Any

from flatgd.records import Dialogue, clean_text, parse_json_object, parse_lines, text_field

KEYS = {"prompt", "completion", "label", "conversation", "speaker", "source"}


def load_jsonl(path: str | Path) -> list[Dialogue]:
    """The rows of one file. Raises DataError with every bad line."""
    path = Path(path)
    rows = parse_lines(path, lambda line: dialogue_from_row(parse_json_object(line)))
    return [row for _, row in rows]


def dialogue_from_row(row: dict[str, Any]) -> Dialogue:
    """One row of the format above; ValueError says what is wrong with it.

    >>> dialogue_from_row({"prompt": "hi", "completion": "hello!", "label": True}).history
    ('hi',)
    """
    if unknown := sorted(set(row) - KEYS):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(sorted(KEYS))}")
    history = _history(row)
    label = row.get("label")
    if not isinstance(label, bool):
        raise ValueError(f"'label' must be true (safe) or false (toxic), got {label!r}")
    speaker = row.get("speaker", "bot")
    if speaker not in ("bot", "human"):
        raise ValueError(f"'speaker' must be bot or human, got {speaker!r}")
    source = text_field(row, "source") if "source" in row else "jsonl"
    if "conversation" in row:
        conversation = str(row["conversation"])
    else:
        opener = history[0] if history else text_field(row, "completion")
        conversation = hashlib.sha256(opener.encode()).hexdigest()[:12]
    return Dialogue(
        history, text_field(row, "completion"), label, source, f"{source}:{conversation}", speaker
    )


def _history(row: dict[str, Any]) -> tuple[str, ...]:
    if isinstance(row.get("prompt"), str):
        return (text_field(row, "prompt"),)
    turns = row.get("prompt")
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError("'prompt' must be text or a list of texts, oldest first")
    return tuple(turn for turn in map(clean_text, turns) if turn)
