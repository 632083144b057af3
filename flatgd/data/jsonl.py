"""Your own data, one labelled reply a row: JSON lines, a JSON array, CSV or TSV, plain or packed.

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
left out, or repeated in the conversations. The forms of LLaMA-Factory, UltraFeedback and OpenAI's
preferences are read as they are (conversations.py). The last turn is the reply. A pair gives two
rows: the chosen reply is safe, the rejected one toxic. Optional keys: `conversation` (rows that
belong together; without it, rows that open with the same turn do), `speaker` (bot or human, who
gave the reply) and `source`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatgd.config.columns import KEYS, TURNS
from flatgd.config.labels import Default, Labels, plain_value
from flatgd.data.conversations import FORMS, Conversation, conversation, pair, unified
from flatgd.dialogue import Author, Dialogue, Role, before, normal_form
from flatgd.errors import DataError, Problem
from flatgd.io.records import clean_text, digest, parse_json, parse_rows, unpacked_name, word_field
from flatgd.io.tables import parse_table

OPTIONAL = ("conversation", "speaker", "source", "system", "tools", "input", "history")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Layout:
    """How rows are read that do not use our names.

    `columns` says which key of a row holds what of ours, as {"completion": "tweet"}; then no other
    keys are read. `toxic_values` and `safe_values` are the labels that mean toxic and safe: with
    both, any other label is an error; one alone is for files with two labels. `label` is that of
    rows without one. `roles` says what role names of the user's own mean, as {"client": "user"}.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    toxic_values: tuple[str, ...] = ()
    label: Default | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    safe_values: tuple[str, ...] = ()

    def renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under our names."""
        if not self.columns:
            return row
        if missing := [name for name in self.columns.values() if name not in row]:
            raise ValueError(f"no {missing[0]!r}; the keys are {', '.join(map(repr, row))}")
        return {ours: row[theirs] for ours, theirs in self.columns.items()}

    def labels(self) -> Labels:
        """ValueError where a value is both, or none."""
        return Labels(self.safe_values, self.toxic_values, self.label)


def load_jsonl(path: str | Path, layout: Layout = Layout()) -> list[Dialogue]:
    """The rows of one file: a table by its suffix, else JSON. Raises DataError with every bad
    line."""
    path = Path(path)
    suffix = Path(unpacked_name(path.name)).suffix.lower()
    rows: Iterable[tuple[int, Any]]
    rows = parse_table(path, SEPARATORS[suffix]) if suffix in SEPARATORS else parse_json(path)
    try:
        labels = layout.labels()
    except ValueError as error:
        raise DataError([Problem(str(path), 0, str(error))]) from None
    seen: dict[str, int] = {}
    dialogues = parse_rows(path, rows, lambda row: _dialogues(row, layout, labels, seen))
    if fault := labels.fault(seen):
        raise DataError([Problem(str(path), 0, fault)])
    return dialogues


def dialogues_from_row(row: dict[str, Any], layout: Layout = Layout()) -> list[Dialogue]:
    """One row in any of the forms above; two Dialogues for a pair. ValueError says what is wrong.

    >>> row = {"prompt": "hi", "completion": "hello!", "label": True}
    >>> [(d.texts, d.reply) for d in dialogues_from_row(row)]
    [(('hi',), 'hello!')]
    """
    return _dialogues(row, layout, layout.labels(), {})


def _dialogues(
    row: dict[str, Any], layout: Layout, labels: Labels, seen: dict[str, int]
) -> list[Dialogue]:
    row = unified(_without_blanks(layout.renamed(row)))
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
    speaker: Author = row.get("speaker", "bot")
    if speaker not in ("bot", "human"):
        raise ValueError(f"'speaker' must be bot or human, got {speaker!r}")
    side: Role = "assistant" if speaker == "bot" else "user"
    if sides := {"chosen", "rejected"} & row.keys():
        if len(sides) == 1:
            raise ValueError(f"{min(sides)!r} alone; a pair has 'chosen' and 'rejected'")
        if "completion" in row:
            raise ValueError(
                "'completion' beside 'chosen' and 'rejected'; drop the one or the others"
            )
        if "label" in row:
            raise ValueError("'label' beside 'chosen' and 'rejected'; a pair has its labels")
        chosen, rejected = pair(row, layout.roles, side)
        return [_dialogue(row, chosen, True, speaker), _dialogue(row, rejected, False, speaker)]
    said = conversation(row, layout.roles, side)
    return [_dialogue(row, said, labels.is_safe(row, seen), speaker)]


def _without_blanks(row: dict[str, Any]) -> dict[str, Any]:
    """The row without optional keys that hold nothing, as tables have them."""
    return {
        key: value
        for key, value in row.items()
        if key not in OPTIONAL or isinstance(value, list | dict) or plain_value(value) is not None
    }


def _dialogue(
    row: dict[str, Any], said: Conversation, is_safe: bool | None, speaker: Author
) -> Dialogue:
    source = word_field(row, "source") if "source" in row else "jsonl"
    history = before(said.history, speaker)
    name = _conversation_id(row) or digest(normal_form(history[0].text if history else said.reply))
    return Dialogue(history, said.reply, is_safe, source, f"{source}:{name}", speaker, said.system)


def _conversation_id(row: dict[str, Any]) -> str | None:
    """The row's own name for its conversation."""
    value = row.get("conversation")
    if isinstance(value, list | dict):
        raise ValueError(f"'conversation' must be text or a number, got {type(value).__name__}")
    return clean_text(value) if isinstance(value, str) else plain_value(value)
