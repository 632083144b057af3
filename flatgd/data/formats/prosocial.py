"""ProsocialDialog (Kim et al. 2022): kind replies to problematic utterances.

https://github.com/skywalker023/prosocial-dialog - CC BY 4.0, `train valid test` .json. Two
published forms are recognised by their content. The original is an array of dialogues of turns:

    [[{"text": "I'll skip work.", "labels": ["Would they miss you?"], "rots": ["Keep your word."],
       "safety_label": "__needs_caution__", "episode_done": true}]]

The hub's form (allenai/prosocial-dialog) is JSON lines, one turn per line:

    {"context": "I'll skip work.", "response": "Would they miss you?", "dialogue_id": 0,
     "safety_label": "__needs_caution__", "response_id": 0, "episode_done": true}

Every reply counts as safe: **the set has no toxic replies**. The utterances they answer are rows of
speaker human, for judges: casual ones are safe, all others toxic (the original's binary task).
"""

from itertools import groupby
from pathlib import Path
from typing import Any

from flatgd.config.labels import plain_value
from flatgd.data.splits import Split, find_split
from flatgd.dialogue import Dialogue, before, normal_form
from flatgd.io.records import (
    digest,
    parse_json_array,
    parse_json_object,
    parse_lines,
    parse_rows,
    text_field,
    word_field,
)
from flatgd.io.text import read_text

CASUAL = "__casual__"
CAUTION = {
    "__possibly_needs_caution__",
    "__probably_needs_caution__",
    "__needs_caution__",
    "__needs_intervention__",
}


def load_prosocial(path: Path, split: Split) -> list[Dialogue]:
    """Replies, and the utterances they answer, of one file or one split of a folder."""
    path = find_split(path, split)
    if read_text(path).lstrip().startswith("["):
        turns = (
            (line, turns if isinstance(turns, ValueError) else {"turns": turns})
            for line, turns in parse_json_array(path)
        )
        return parse_rows(path, turns, _original)
    rows = parse_lines(path, _turn_of_hub)
    parts = groupby(rows, key=lambda row: plain_value(row[1]["dialogue_id"]))
    dialogues = [list(part) for _, part in parts]
    numbered = ((part[0][0], {"turns": [_renamed(row) for _, row in part]}) for part in dialogues)
    return parse_rows(path, numbered, _original)


def _turn_of_hub(line: str) -> dict[str, Any]:
    row = parse_json_object(line)
    if plain_value(row.get("dialogue_id")) is None:
        raise ValueError("no 'dialogue_id', the id that the turns of one dialogue share")
    return row


def _renamed(row: dict[str, Any]) -> dict[str, Any]:
    """A turn of the hub's form with the original's key names."""
    names = {"context": "text", "response": "labels"}
    renamed = {names.get(key, key): value for key, value in row.items()}
    return {**renamed, "labels": [renamed["labels"]]} if "labels" in renamed else renamed


def _original(row: dict[str, Any]) -> list[Dialogue]:
    """The rows of one dialogue."""
    turns = row["turns"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("expected a dialogue, an array of turns")
    rows: list[Dialogue] = []
    lines: list[str] = []
    for turn in turns:
        text = text_field(turn, "text")
        name = f"prosocial:{digest(normal_form(lines[0] if lines else text))}"
        safe = _is_casual(word_field(turn, "safety_label"))
        rows.append(Dialogue(before(lines, "human"), text, safe, "prosocial", name, "human"))
        lines.append(text)
        reply = _reply(turn)
        rows.append(Dialogue(before(lines), reply, True, "prosocial", name))
        lines.append(reply)
    return rows


def _reply(turn: dict[str, Any]) -> str:
    labels = turn.get("labels")
    if not isinstance(labels, list) or len(labels) != 1:
        raise ValueError(f"'labels' (or 'response') must hold one reply, got {labels!r:.40}")
    return text_field({"labels": labels[0]}, "labels")


def _is_casual(label: str) -> bool:
    if label != CASUAL and label not in CAUTION:
        raise ValueError(f"'safety_label' must be {CASUAL} or one of {sorted(CAUTION)}: {label!r}")
    return label == CASUAL
