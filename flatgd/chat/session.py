"""A conversation with one or several models, and the file it is saved in.

All models answer the same history, and one of the replies continues the conversation. A saved
session has one row for each reply, in order (SessionRow):

    {"prompt": ["hi"], "completion": "hello!", "source": "flatgd", "conversation": "3f0c-1"}

A reply that was labelled also has `"label": true` (safe) or `false` (toxic). Empty replies have no
row. `flatgd data stats`, `flatgd data convert` and `flatgd annotate create` read such files.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from flatgd.artifacts.rows import JudgedRow
from flatgd.data.jsonl import RowFormat, load_jsonl
from flatgd.dialogue import Dialogue, as_messages
from flatgd.errors import UsageError
from flatgd.io.files import write_private
from flatgd.io.records import checked_text, json_lines

ReplyFunction = Callable[[Sequence[str], int, int], list[str]]  # (history, samples, seed)
JudgeFunction = Callable[[Sequence[tuple[tuple[str, ...], str]]], list[float]]  # (history, reply)


EXAMPLE = "So a very bad day at work today"  # opens the paper's Table 6; from BAD test


class SessionRow(TypedDict):
    """One reply of a saved session. `label` is true for safe, false for toxic."""

    prompt: list[str]
    completion: str
    source: str
    conversation: str
    label: NotRequired[bool]


@dataclass
class Reply:
    """One reply of a model. `is_safe` is its label, None without one."""

    model: str
    text: str
    is_safe: bool | None = None


@dataclass
class Turn:
    """A message and the replies to it. `chosen` is the index of the reply that the chat continues
    with."""

    message: str
    replies: list[Reply]
    chosen: int = 0


@dataclass
class Session:
    """A chat with `models`, by name. `judge` gives P(toxic) of replies, None without a judge."""

    models: Mapping[str, ReplyFunction]
    judge: JudgeFunction | None = None
    samples: int = 1
    seed: int = 0
    turns: list[Turn] = field(default_factory=list)
    _rows: list[SessionRow] = field(default_factory=list)  # of earlier conversations
    _name: str = field(default_factory=lambda: secrets.token_hex(4))
    _count: int = 1
    _sent: int = 0

    def history(self, before: int | None = None) -> list[str]:
        """The conversation before turn `before`, or all of it; oldest message first."""
        turns = self.turns[:before]
        return [text for turn in turns for text in (turn.message, turn.replies[turn.chosen].text)]

    def send(self, text: str) -> Turn:
        """Send a message and get every model's replies. ValueError if the message is empty."""
        if not (text := checked_text(text).strip()):
            raise ValueError("the message is empty")
        history = [*self.history(), text]
        seed = self.seed + self._sent
        replies = [
            Reply(name, reply)
            for name, reply_to in self.models.items()
            for reply in reply_to(history, self.samples, seed)
        ]
        self._sent += 1
        self.turns.append(Turn(text, replies))
        return self.turns[-1]

    def pick(self, number: int) -> None:
        """Continue with another of the last replies, from 1. ValueError for a wrong number."""
        place = self._index(number)
        self.turns[-1].chosen = place

    def label(self, number: int, is_safe: bool) -> None:
        """Label one of the last replies, counted from 1. ValueError for a wrong number."""
        place = self._index(number)
        self.turns[-1].replies[place].is_safe = is_safe

    def scores(self) -> list[float]:
        """The judge's P(toxic) of the last replies. ValueError without a judge or a reply."""
        self._index(1)
        if self.judge is None:
            raise ValueError("there is no judge: these models do not belong to a run with a judge")
        history = (*self.history(-1), self.turns[-1].message)
        return self.judge([(history, reply.text) for reply in self.turns[-1].replies])

    def _index(self, number: int) -> int:
        replies = self.turns[-1].replies if self.turns else []
        if not replies:
            raise ValueError("there are no replies yet")
        if not 1 <= number <= len(replies):
            raise ValueError(f"there is no reply {number}; the last is {len(replies)}")
        return number - 1

    def reset(self) -> None:
        """Begin a new conversation. The session keeps the earlier ones."""
        if self.turns:
            self._rows, self._count = self.rows(), self._count + 1
            self.turns = []

    def rows(self) -> list[SessionRow]:
        """The rows of the session's file."""
        rows = list(self._rows)
        for place, turn in enumerate(self.turns):
            prompt = [*self.history(place), turn.message]
            for reply in (reply for reply in turn.replies if reply.text.strip()):
                row: SessionRow = {
                    "prompt": prompt,
                    "completion": reply.text,
                    "source": reply.model,
                    "conversation": f"{self._name}-{self._count}",
                }
                if reply.is_safe is not None:
                    row["label"] = reply.is_safe
                rows.append(row)
        return rows

    def text(self) -> str:
        """The content of the session's file."""
        return json_lines(self.rows())


class SessionFile:
    """The file that a session is saved in. Raises UsageError if it exists already."""

    def __init__(self, path: Path):
        if path.exists():
            raise UsageError(f"{path} already exists. Choose another file, or delete it first.")
        self.path = path

    def write(self, session: Session) -> None:
        """Save the session, for its owner alone. Raises UsageError if it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_private(self.path, session.text())
        except OSError as error:
            raise UsageError(f"{self.path} cannot be written: {error.strerror}") from None


def load_session(path: Path) -> dict[str, list[Dialogue]]:
    """The replies of each model in a saved session. Raises DataError if the file is no session."""
    models: dict[str, list[Dialogue]] = {}
    for row in load_jsonl(path, RowFormat(label="none")):
        models.setdefault(row.source, []).append(row)
    return models


def session_generations(
    session: Mapping[str, Sequence[Dialogue]], names: Sequence[str]
) -> dict[str, list[JudgedRow]]:
    """The replies of some models to the histories that all of them answered.

    Raises UsageError if a model is not in the session.
    """
    if unknown := [name for name in names if name not in session]:
        raise UsageError(f"This session has no model {unknown[0]!r}; it has {', '.join(session)}.")
    answered = {name: {_position(row) for row in session[name]} for name in names}
    shared = set.intersection(*answered.values())
    generations = {}
    for name in names:
        rows: dict[tuple[str, tuple[Any, ...]], JudgedRow] = {}
        for row in session[name]:
            position = _position(row)
            if position in shared:
                empty: JudgedRow = {
                    "dataset": "chat",
                    "conversation": position[0],
                    "system": row.system,
                    "history": as_messages(row.history),
                    "replies": [],
                }
                rows.setdefault(position, empty)["replies"].append(row.reply)
        generations[name] = list(rows.values())
    return generations


def _position(row: Dialogue) -> tuple[str, tuple[Any, ...]]:
    """The conversation, which all models share, and the history."""
    return row.conversation.removeprefix(f"{row.source}:"), row.history


def parse_number(text: str) -> int:
    """A whole number that a user typed. ValueError for any other text."""
    if not text.isdecimal() or len(text) > 6:
        raise ValueError(f"expected a number, got {text!r}")
    return int(text)
