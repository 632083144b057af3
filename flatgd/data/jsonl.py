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
left out, or repeated at their beginning. The forms of LLaMA-Factory (instruction, input, output),
UltraFeedback and OpenAI's preferences are read as they are (conversations.py). The last turn is the
reply. A pair gives two rows: the chosen reply is safe, the rejected
one toxic. Optional keys: `conversation` (rows that belong together; without it, rows that open with
the same line do), `speaker` (bot or human, who gave the reply) and `source`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flatgd.data.conversations import (
    ABOUT,
    FORMS,
    REPLIES,
    TURNS,
    Conversation,
    conversation,
    pair,
    unified,
)
from flatgd.dialogue import Dialogue, Speaker, normal_form
from flatgd.errors import DataError, Problem
from flatgd.records import (
    digest,
    parse_json_array,
    parse_json_object,
    parse_lines,
    parse_rows,
    parse_table,
    word_field,
)

COMMON = ("label", "conversation", "speaker", "source")
KEYS = (*TURNS, "prompt", *REPLIES, *COMMON, *ABOUT)
CSV_LABELS = {"true": True, "false": False}
Label = Literal["safe", "toxic", "none"]


@dataclass(frozen=True)
class Layout:
    """How rows are read that do not use our names.

    `columns` says which key of a row holds what of ours, as {"completion": "tweet"}; then no other
    keys are read. `toxic_values` are the labels that mean toxic, all others mean safe. `label` is
    that of rows without one: None refuses them, "none" leaves them without. `roles` says what
    role names of the user's own mean, as {"customer": "user"}.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    toxic_values: tuple[str, ...] = ()
    label: Label | None = None
    roles: Mapping[str, str] = field(default_factory=dict)

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
    >>> [(d.texts, d.reply) for d in dialogues_from_row(row)]
    [(('hi',), 'hello!')]
    """
    row = unified(layout.renamed(row))
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
        chosen, rejected = pair(row, layout.roles)
        return [_dialogue(row, chosen, True), _dialogue(row, rejected, False)]
    return [_dialogue(row, conversation(row, layout.roles), layout.is_safe(row))]


def _dialogue(row: dict[str, Any], said: Conversation, is_safe: bool | None) -> Dialogue:
    speaker: Speaker = row.get("speaker", "bot")
    if speaker not in ("bot", "human"):
        raise ValueError(f"'speaker' must be bot or human, got {speaker!r}")
    source = word_field(row, "source") if "source" in row else "jsonl"
    if "conversation" in row:
        name = str(row["conversation"])
    else:
        name = digest(normal_form(said.history[0].text if said.history else said.reply))
    return Dialogue(
        said.history, said.reply, is_safe, source, f"{source}:{name}", speaker, said.system
    )


def _table(path: Path, separator: str, own_labels: bool) -> Iterable[tuple[int, Any]]:
    """The rows of a table; `true` and `false` are labels unless others are given."""
    for line, row in parse_table(path, separator):
        label = row.get("label", "").lower()
        if not own_labels and label in CSV_LABELS:
            yield line, {**row, "label": CSV_LABELS[label]}
        else:
            yield line, row
