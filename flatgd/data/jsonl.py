"""Your own data, one labelled reply per row: JSON lines, a JSON array, CSV, TSV or Parquet.

Files may be compressed. The keys decide the form of a row. `label` is true if the reply is safe.
Invented examples:

    {"prompt": "how are you?", "completion": "fine, thanks.", "label": true}
    {"prompt": ["hi", "hello!", "how are you?"], "completion": "fine, thanks.", "label": true}
    {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"},
                  {"role": "assistant", "content": "hello!"}], "label": true}
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello!"}],
     "label": true}
    {"turns": ["hi", "hello!"], "label": true}
    {"prompt": "hi", "chosen": "hello!", "rejected": "go away."}

`prompt`, `completion`, `chosen` and `rejected` may also be lists of messages. Then `prompt` may be
missing, or repeated in the conversations. conversations.py also reads the forms of LLaMA-Factory,
UltraFeedback and OpenAI's preferences. The last turn is the reply. A pair gives two rows: the
chosen reply is safe, the rejected one toxic. Optional keys are `conversation` (the id of rows that
belong together; by default, rows with the same first turn), `speaker` (bot or human, the author of
the reply) and `source`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatgd.config.columns import KEYS, PAIR, TURNS
from flatgd.config.labels import Default, Labels, is_blank, plain_value
from flatgd.data.conversations import (
    FORMS,
    Conversation,
    has_thinking,
    has_zero_weight,
    read_conversation,
    read_pair,
    to_standard_keys,
)
from flatgd.dialogue import Author, Dialogue, Role, before, normal_form
from flatgd.errors import DataError, Problem
from flatgd.io.any_file import Records, parse_any, repeated
from flatgd.io.records import (
    KEPT,
    PAIR_READ,
    LeftOut,
    clean_text,
    digest,
    parse_rows,
    word_field,
)

OPTIONAL = ("conversation", "speaker", "source", "system", "tools", "input", "history")
_ONE_REPLY, _PAIR = frozenset(("completion", *TURNS)), frozenset(PAIR)
ZERO_WEIGHT = LeftOut("reply with weight 0")
THINKING_UNREAD = LeftOut(f"thinking of a message{KEPT}")


@dataclass(frozen=True)
class RowFormat:
    """How to read rows whose keys, labels or roles have other names.

    `columns` maps our keys to the file's, as {"completion": "tweet"}; then no other keys are read.
    `toxic_values` and `safe_values` are the labels that mean toxic and safe. With both, any other
    label is an error; one alone is for files with exactly two labels. `label` applies to rows
    without a label. `roles` maps other role names, as {"client": "user"}.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    toxic_values: tuple[str, ...] = ()
    label: Default | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    safe_values: tuple[str, ...] = ()

    def renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its keys renamed to ours."""
        if not self.columns:
            return row
        if missing := [name for name in self.columns.values() if name not in row]:
            raise ValueError(f"no {missing[0]!r}; the keys are {', '.join(map(repr, row))}")
        return {ours: row[theirs] for ours, theirs in self.columns.items()}

    def labels(self) -> Labels:
        """The label rules. ValueError if a value is in both lists, or is blank."""
        return Labels(self.safe_values, self.toxic_values, self.label)


def load_jsonl(path: str | Path, row_format: RowFormat = RowFormat()) -> list[Dialogue]:
    """The rows of one file: CSV, TSV or Parquet by its name, else JSON.

    Raises DataError with every bad line.
    """
    return from_records(Path(path), parse_any(Path(path)), row_format)


def load_rows(rows: Any, row_format: RowFormat = RowFormat()) -> list[Dialogue]:
    """Rows from Python: a list of mappings, a datasets.Dataset, or a pandas.DataFrame.

    >>> rows = [{"question": "hi", "answer": "hello!", "safe": "yes"}]
    >>> columns = {"prompt": "question", "completion": "answer", "label": "safe"}
    >>> wanted = RowFormat(columns, toxic_values=("no",), safe_values=("yes",))
    >>> [(row.reply, row.is_safe) for row in load_rows(rows, wanted)]
    [('hello!', True)]

    Raises DataError with every bad row.
    """
    if isinstance(rows, Mapping | str) or not hasattr(rows, "__iter__"):
        wanted = "a list of mappings, a datasets.Dataset or a pandas.DataFrame"
        told = f"expected {wanted}, got {type(rows).__name__}"
        raise DataError([Problem("rows", 0, f"{told}; of a DatasetDict, give one split")])
    found = as_mappings(rows)
    return from_records(Path("rows"), enumerate(map(_plain_row, found), start=1), row_format)


def as_mappings(rows: Any) -> Any:
    """A pandas.DataFrame as a list of dicts; anything else as it is. Raises DataError where two
    columns have one name."""
    if not (hasattr(rows, "columns") and hasattr(rows, "to_dict")):
        return rows
    if twice := repeated(list(rows.columns)):
        reason = f"two columns are called {twice!r}; rename or remove one"
        raise DataError([Problem("rows", 0, reason)])
    return rows.to_dict("records")


def _plain_row(row: Any) -> Any:
    """The row with numpy's values as Python's; what is no mapping is left to the parser."""
    if not isinstance(row, Mapping):
        return row
    return {k: v.item() if hasattr(v, "dtype") and not v.shape else v for k, v in row.items()}


def from_records(path: Path, rows: Records, row_format: RowFormat = RowFormat()) -> list[Dialogue]:
    """Numbered rows of `path`, which names them in errors. Raises DataError with every bad row."""
    try:
        labels = row_format.labels()
    except ValueError as error:
        raise DataError([Problem(str(path), 0, str(error))]) from None
    seen: dict[str, int] = {}
    dialogues = parse_rows(path, rows, lambda row: _dialogues(row, row_format, labels, seen))
    if fault := labels.fault(seen):
        raise DataError([Problem(str(path), 0, fault)])
    return dialogues


def dialogues_from_row(row: dict[str, Any], row_format: RowFormat = RowFormat()) -> list[Dialogue]:
    """Read one row in any of the forms above; a pair gives two Dialogues. ValueError says why not.

    >>> row = {"prompt": "hi", "completion": "hello!", "label": True}
    >>> [(d.texts, d.reply) for d in dialogues_from_row(row)]
    [(('hi',), 'hello!')]
    """
    found = _dialogues(row, row_format, row_format.labels(), {})
    if unused := [part for part in found if isinstance(part, LeftOut) and not part.is_kept]:
        raise ValueError(f"{unused[0].reason}; remove the row, or the weight")
    return [part for part in found if isinstance(part, Dialogue)]


def _dialogues(
    row: dict[str, Any], row_format: RowFormat, labels: Labels, seen: dict[str, int]
) -> list[Dialogue | LeftOut]:
    row = to_standard_keys(_without_blanks(row_format.renamed(row)))
    if _ONE_REPLY.isdisjoint(row) and not row.keys() >= _PAIR:
        keys = ", ".join(map(repr, row)) or "none"
        raise ValueError(
            f"no reply: expected {FORMS}; the keys are {keys}. If the file uses other names, map "
            "them in the recipe's source: columns: {completion: answer, label: class}"
        )
    if unknown := [key for key in row if key not in KEYS]:
        raise ValueError(
            f"unknown key {unknown[0]!r}; remove it, or list the keys to read in `columns`"
        )
    speaker: Author = row.get("speaker", "bot")
    if speaker not in ("bot", "human"):
        raise ValueError(f"'speaker' must be bot or human, got {speaker!r}")
    side: Role = "assistant" if speaker == "bot" else "user"
    replies: list[tuple[str, Conversation, bool | None]]
    unread = [THINKING_UNREAD] if has_thinking(row) else []
    if sides := _PAIR & row.keys():
        if len(sides) == 1:
            raise ValueError(f"{min(sides)!r} alone; a pair has 'chosen' and 'rejected'")
        if "completion" in row:
            raise ValueError(
                "'completion' together with 'chosen' and 'rejected'; keep one form only"
            )
        if "label" in row:
            raise ValueError(
                "'label' together with 'chosen' and 'rejected'; remove it: the keys label a pair"
            )
        chosen, rejected = read_pair(row, row_format.roles, side)
        replies = [("chosen", chosen, True), ("rejected", rejected, False)]
        unread.append(PAIR_READ)
    else:
        key = next(key for key in ("completion", *TURNS) if key in row)
        read = read_conversation(row, row_format.roles, side)
        replies = [(key, read, labels.is_safe(row, seen))]
    return unread + [
        ZERO_WEIGHT if has_zero_weight(row[key]) else _dialogue(row, read, label, speaker)
        for key, read, label in replies
    ]


def _without_blanks(row: dict[str, Any]) -> dict[str, Any]:
    """The row without its blank optional keys, which tables often have."""
    given = [key for key in OPTIONAL if key in row and type(row[key]) not in (list, dict)]
    blank = [key for key in given if is_blank(row[key])]
    return {key: value for key, value in row.items() if key not in blank} if blank else row


def _dialogue(
    row: dict[str, Any], read: Conversation, is_safe: bool | None, speaker: Author
) -> Dialogue:
    source = word_field(row, "source") if "source" in row else "jsonl"
    history = before(read.history, speaker)
    name = _conversation_id(row) or digest(normal_form(history[0].text if history else read.reply))
    return Dialogue(history, read.reply, is_safe, source, f"{source}:{name}", speaker, read.system)


def _conversation_id(row: dict[str, Any]) -> str | None:
    """The row's id for its conversation, None if it has none."""
    value = row.get("conversation")
    if isinstance(value, list | dict):
        raise ValueError(f"'conversation' must be text or a number, got {type(value).__name__}")
    return clean_text(value) if isinstance(value, str) else plain_value(value)
