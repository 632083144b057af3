"""Your own data: one labelled reply a row, in JSON lines, a JSON array, CSV or TSV, plain or .gz.

Any of these forms, told by their keys (all invented); `label` is true where the reply is safe:

    {"prompt": "how are you?", "completion": "fine, thanks.", "label": true}
    {"prompt": ["hi", "hello!", "how are you?"], "completion": "fine, thanks.", "label": true}
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"},
                  {"role": "assistant", "content": "hello!"}], "label": true}
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello!"}],
     "label": true}
    {"turns": ["hi", "hello!"], "label": true}
    {"prompt": "hi", "chosen": "hello!", "rejected": "go away."}

`prompt`, `completion`, `chosen` and `rejected` may be lists of messages too; then `prompt` may be
left out. The last turn is the reply. A pair gives two rows: the chosen reply is safe, the rejected
one toxic. Optional keys: `conversation` (rows that belong together; without it, rows that open with
the same line do), `speaker` (bot or human, who gave the reply) and `source`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flatgd.errors import DataError, Problem
from flatgd.records import (
    Dialogue,
    Speaker,
    clean_text,
    digest,
    parse_json_array,
    parse_json_object,
    parse_lines,
    parse_rows,
    parse_table,
    text_field,
)

FORMS = "'messages', 'turns', 'prompt' with 'completion', or 'chosen' with 'rejected'"
TURNS = ("messages", "conversations", "turns")
COMMON = ("label", "conversation", "speaker", "source")
KEYS = (*TURNS, "prompt", "completion", "chosen", "rejected", *COMMON)
ROLES = {"user": "user", "human": "user", "assistant": "bot", "gpt": "bot", "system": "system"}
CSV_LABELS = {"true": True, "false": False}
Label = Literal["safe", "toxic", "none"]


@dataclass(frozen=True)
class Layout:
    """How rows are read that do not use our names.

    `columns` says which key of a row holds what of ours, as {"completion": "tweet"}; then no other
    keys are read. `toxic_values` are the labels that mean toxic, all others mean safe. `label` is
    that of rows without one: None refuses them, "none" leaves them without.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    toxic_values: tuple[str, ...] = ()
    label: Label | None = None

    def renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under our names."""
        if not self.columns:
            return row
        if missing := [name for name in self.columns.values() if name not in row]:
            raise ValueError(f"no {missing[0]!r}; the keys are {', '.join(map(repr, row))}")
        return {ours: row[theirs] for ours, theirs in self.columns.items()}

    def is_safe(self, row: dict[str, Any]) -> bool | None:
        if "label" not in row:
            if self.label is None:
                raise ValueError(
                    "no 'label'; true is safe, false is toxic. For a file of one kind, the source "
                    "takes label: safe (or toxic, or none)"
                )
            return {"safe": True, "toxic": False, "none": None}[self.label]
        value = row["label"]
        if self.toxic_values:
            return str(value) not in self.toxic_values
        if not isinstance(value, bool):
            raise ValueError(
                f"'label' must be true (safe) or false (toxic), got {value!r}. Where other values "
                "mean toxic, name them in the recipe's source: toxic_values: [...]"
            )
        return value


class Talk(NamedTuple):
    """System message, history and reply of one row."""

    system: str
    history: tuple[str, ...]
    reply: str


def load_jsonl(path: str | Path, layout: Layout = Layout()) -> list[Dialogue]:
    """The rows of one file, read by its suffix. Raises DataError with every bad line."""
    path = Path(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    rows: Iterable[tuple[int, Any]]
    if suffix in (".csv", ".tsv"):
        rows = _table(path, "," if suffix == ".csv" else "\t", bool(layout.toxic_values))
    elif suffix == ".json":
        rows = parse_json_array(path)
    else:
        rows = parse_lines(path, parse_json_object)
    labels: dict[str, None] = {}

    def parse(row: dict[str, Any]) -> list[Dialogue]:
        dialogues = dialogues_from_row(row, layout)
        labels[str(layout.renamed(row).get("label"))] = None
        return dialogues

    dialogues = parse_rows(path, rows, parse)
    if unseen := [value for value in layout.toxic_values if value not in labels]:
        told = ", ".join(map(repr, list(labels)[:10]))
        reason = f"toxic_values: {unseen[0]!r} is the label of no row; the labels are {told}"
        raise DataError([Problem(str(path), 0, reason)])
    return dialogues


def dialogues_from_row(row: dict[str, Any], layout: Layout = Layout()) -> list[Dialogue]:
    """One row in any of the forms above; two Dialogues for a pair. ValueError says what is wrong.

    >>> row = {"prompt": "hi", "completion": "hello!", "label": True}
    >>> [(d.history, d.reply) for d in dialogues_from_row(row)]
    [(('hi',), 'hello!')]
    """
    row = layout.renamed(row)
    if not ({"completion", *TURNS} & row.keys() or {"chosen", "rejected"} <= row.keys()):
        keys = ", ".join(map(repr, row)) or "none"
        raise ValueError(
            f"no reply: expected {FORMS}; the keys are {keys}. Other names are told in the "
            "recipe's source: columns: {completion: answer, label: class}"
        )
    if unknown := [key for key in row if key not in KEYS]:
        raise ValueError(
            f"unknown key {unknown[0]!r}; drop it, or say with `columns` which keys to read"
        )
    if "chosen" in row:
        if "completion" in row:
            raise ValueError(
                "'completion' beside 'chosen' and 'rejected'; drop the one or the others"
            )
        if "label" in row:
            raise ValueError("'label' beside 'chosen' and 'rejected'; a pair has its labels")
        pair = ((_pair_side(row, "chosen"), True), (_pair_side(row, "rejected"), False))
        return [_dialogue(row, talk, is_safe) for talk, is_safe in pair]
    return [_dialogue(row, _talk(row), layout.is_safe(row))]


def _dialogue(row: dict[str, Any], talk: Talk, is_safe: bool | None) -> Dialogue:
    speaker: Speaker = row.get("speaker", "bot")
    if speaker not in ("bot", "human"):
        raise ValueError(f"'speaker' must be bot or human, got {speaker!r}")
    source = text_field(row, "source") if "source" in row else "jsonl"
    if "conversation" in row:
        name = str(row["conversation"])
    else:
        name = digest(talk.history[0] if talk.history else talk.reply)
    return Dialogue(
        talk.history, talk.reply, is_safe, source, f"{source}:{name}", speaker, talk.system
    )


def _talk(row: dict[str, Any]) -> Talk:
    if forms := [key for key in TURNS if key in row]:
        if len(forms) > 1 or "prompt" in row or "completion" in row:
            raise ValueError(f"{forms[0]!r} holds prompt and reply; drop the other form")
        return _from_turns(row[forms[0]], forms[0])
    system, history = _prompt(row)
    return Talk(system, history, _completion(row["completion"], "completion"))


def _pair_side(row: dict[str, Any], key: str) -> Talk:
    if "prompt" in row:
        system, history = _prompt(row)
        return Talk(system, history, _completion(row[key], key))
    if isinstance(row[key], str):
        if row[key].startswith("\n\nHuman:"):
            raise ValueError(f"{key!r} is an HH-RLHF transcript; read this file with format: hh")
        return Talk("", (), text_field(row, key))
    return _from_turns(row[key], key)


def _prompt(row: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """(system message, history)."""
    if "prompt" not in row:
        return "", ()
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return "", (text_field(row, "prompt"),)
    if not isinstance(prompt, list):
        raise ValueError("'prompt' must be text or a list of turns, oldest first")
    return _split_system([_turn(item, "prompt") for item in prompt])


def _completion(value: Any, key: str) -> str:
    """The reply, as text or as a list of one message."""
    if isinstance(value, list):
        if len(value) != 1:
            raise ValueError(f"{key!r} must hold one message, got {len(value)}")
        role, value = _turn(value[0], key)
        if role not in ("bot", ""):
            raise ValueError(f"{key!r} must be the assistant's, got a message of the {role}")
    return text_field({key: value}, key)


def _from_turns(turns: Any, key: str) -> Talk:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{key!r} must be a list of turns, oldest first")
    parsed = [_turn(item, key) for item in turns]
    role, reply = parsed[-1]
    if role not in ("bot", ""):
        raise ValueError(f"the last of {key!r} must be the assistant's reply, is of the {role}")
    system, history = _split_system(parsed[:-1])
    return Talk(system, history, text_field({"reply": reply}, "reply"))


def _split_system(turns: list[tuple[str, str]]) -> tuple[str, tuple[str, ...]]:
    system = [clean_text(text) for role, text in turns if role == "system"]
    lines = tuple(line for role, text in turns if role != "system" and (line := clean_text(text)))
    return " ".join(system), lines


def _turn(item: Any, key: str) -> tuple[str, str]:
    """(role, text) of a turn: plain text (role ""), an OpenAI message or a ShareGPT one."""
    if isinstance(item, str):
        return "", item
    if not isinstance(item, dict):
        raise ValueError(f"a turn of {key!r} must be text or a message, got {type(item).__name__}")
    role, text = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role not in ROLES:
        raise ValueError(f"role {role!r} in {key!r}; the roles are {', '.join(ROLES)}")
    if isinstance(text, list):  # content in parts, as [{"type": "text", "text": "hi"}]
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in text):
            raise ValueError(f"a message of {key!r} holds more than text")
        text = " ".join(str(part.get("text", "")) for part in text)
    if not isinstance(text, str):
        raise ValueError(f"a message of {key!r} has no text 'content'")
    return ROLES[role], text


def _table(path: Path, separator: str, own_labels: bool) -> Iterable[tuple[int, Any]]:
    """The rows of a table; `true` and `false` are labels unless others are given."""
    for line, row in parse_table(path, separator):
        label = row.get("label", "").lower()
        if not own_labels and label in CSV_LABELS:
            yield line, {**row, "label": CSV_LABELS[label]}
        else:
            yield line, row
