"""A conversation with one or several models, and the file it is saved in.

All models answer the same history; with several replies one of them is gone on with. A saved
session has a row a reply, in the order in which they were given:

    {"prompt": ["hi"], "completion": "hello!", "source": "flatgd", "conversation": "3f0c-1"}

with `"label": true` or `false` where the reply was marked safe or toxic; a reply of no words has
none. `flatgd data stats`, `flatgd data convert` and `flatgd annotate create` read it.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flatgd.data.jsonl import RowFormat, load_jsonl
from flatgd.dialogue import Dialogue, as_messages
from flatgd.errors import RecipeError
from flatgd.io.files import write_atomically
from flatgd.io.records import checked_text, json_lines

Row = dict[str, Any]
Speaks = Callable[[Sequence[str], int, int], list[str]]  # history, samples, seed
Judges = Callable[[Sequence[tuple[tuple[str, ...], str]]], list[float]]  # (history, reply) each


@dataclass
class Reply:
    """One reply of a model; `is_safe` as it was marked."""

    model: str
    text: str
    is_safe: bool | None = None


@dataclass
class Turn:
    """What was said, and the replies to it; `chosen` is the place of the one gone on with."""

    said: str
    replies: list[Reply]
    chosen: int = 0


@dataclass
class Session:
    """`speakers` answer, each under its name. `judge` gives P(toxic), None where there is none."""

    speakers: Mapping[str, Speaks]
    judge: Judges | None = None
    samples: int = 1
    seed: int = 0
    turns: list[Turn] = field(default_factory=list)
    _rows: list[Row] = field(default_factory=list)  # of conversations that have ended
    _name: str = field(default_factory=lambda: secrets.token_hex(4))
    _count: int = 1
    _said: int = 0

    def history(self, before: int | None = None) -> list[str]:
        """What the models have before them, oldest first."""
        turns = self.turns[:before]
        return [line for turn in turns for line in (turn.said, turn.replies[turn.chosen].text)]

    def say(self, text: str) -> Turn:
        """Every model's replies. ValueError where nothing is said."""
        if not (text := checked_text(text).strip()):
            raise ValueError("nothing said")
        history = [*self.history(), text]
        seed = self.seed + self._said
        replies = [
            Reply(name, reply)
            for name, speak in self.speakers.items()
            for reply in speak(history, self.samples, seed)
        ]
        self._said += 1
        self.turns.append(Turn(text, replies))
        return self.turns[-1]

    def pick(self, number: int) -> None:
        """Go on with another of the last replies, counted from 1. ValueError for none such."""
        place = self._place(number)
        self.turns[-1].chosen = place

    def mark(self, number: int, is_safe: bool) -> None:
        """Label one of the last replies, counted from 1. ValueError for none such."""
        place = self._place(number)
        self.turns[-1].replies[place].is_safe = is_safe

    def scores(self) -> list[float]:
        """The judge's P(toxic) of the last replies. ValueError without a judge or a reply."""
        self._place(1)
        if self.judge is None:
            raise ValueError("no judge: these models are of no run that has one")
        history = (*self.history(-1), self.turns[-1].said)
        return self.judge([(history, reply.text) for reply in self.turns[-1].replies])

    def _place(self, number: int) -> int:
        replies = self.turns[-1].replies if self.turns else []
        if not replies:
            raise ValueError("nothing was said yet")
        if not 1 <= number <= len(replies):
            raise ValueError(f"no reply {number}; there are {len(replies)}")
        return number - 1

    def reset(self) -> None:
        """A new conversation; what was said before stays in the session."""
        if self.turns:
            self._rows, self._count = self.rows(), self._count + 1
            self.turns = []

    def rows(self) -> list[Row]:
        """A row a reply."""
        rows = list(self._rows)
        for place, turn in enumerate(self.turns):
            prompt = [*self.history(place), turn.said]
            for reply in (reply for reply in turn.replies if reply.text.strip()):
                row = {"prompt": prompt, "completion": reply.text, "source": reply.model}
                row["conversation"] = f"{self._name}-{self._count}"
                rows.append(row if reply.is_safe is None else {**row, "label": reply.is_safe})
        return rows

    def text(self) -> str:
        """The file of the session."""
        return json_lines(self.rows())


class SessionFile:
    """Where a session is kept. Raises RecipeError where another file is."""

    def __init__(self, path: Path):
        if path.exists():
            raise RecipeError(f"{path} exists; its conversations stay, name another file")
        self.path = path

    def write(self, session: Session) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, session.text())
        except OSError as error:
            raise RecipeError(f"{self.path} cannot be written: {error.strerror}") from None


def said_in(path: Path) -> dict[str, list[Dialogue]]:
    """The replies of each model in a saved session. Raises DataError for a file that is none."""
    models: dict[str, list[Dialogue]] = {}
    for row in load_jsonl(path, RowFormat(label="none")):
        models.setdefault(row.source, []).append(row)
    return models


def replies_of(
    said: Mapping[str, Sequence[Dialogue]], names: Sequence[str]
) -> dict[str, list[Row]]:
    """The replies of some models, to the histories that all of them answered, as rows of
    generations. Raises RecipeError for a model that is not in the session."""
    if unknown := [name for name in names if name not in said]:
        raise RecipeError(f"no {unknown[0]!r} in this session; it has {', '.join(said)}")
    spots = {name: {(_talk(row), row.history) for row in said[name]} for name in names}
    shared = set.intersection(*spots.values())
    generations = {}
    for name in names:
        rows: dict[tuple[str, tuple[Any, ...]], Row] = {}
        for row in said[name]:
            spot = (_talk(row), row.history)
            if spot in shared:
                about = {"dataset": "chat", "conversation": spot[0], "system": row.system}
                fresh = {**about, "history": as_messages(row.history), "replies": []}
                rows.setdefault(spot, fresh)["replies"].append(row.reply)
        generations[name] = list(rows.values())
    return generations


def _talk(row: Dialogue) -> str:
    """The conversation, which is that of all models."""
    return row.conversation.removeprefix(f"{row.source}:")


def number_in(text: str) -> int:
    """What was typed where a number belongs. ValueError for anything else."""
    if not text.isdecimal() or len(text) > 6:
        raise ValueError(f"expected a number, got {text!r}")
    return int(text)
