"""Dialogue, the record used throughout: a conversation and one labelled reply."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

Role = Literal["user", "assistant"]
Author = Literal["human", "bot"]


class Message(TypedDict):
    """A turn in the form that files and chat templates use."""

    role: Role
    content: str


class Turn(NamedTuple):
    """One message of a conversation, its text unchanged."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A history and one reply to it.

    `history` lists the turns, oldest first. Plain strings are accepted too: their roles alternate,
    and the last string is the turn that the reply answers. `is_safe` is the human label of the
    reply, or None. Rows with the same `conversation` belong together, and no split separates them.
    `speaker` is the author of the reply. `system` is the system message, or "". `where` is the
    row's file and line, used in messages only.
    """

    history: tuple[Turn, ...]
    reply: str
    is_safe: bool | None
    source: str
    conversation: str
    speaker: Author = "bot"
    system: str = ""
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", before(self.history, self.speaker))

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the history, without roles."""
        return tuple(turn.text for turn in self.history)

    @property
    def exchange(self) -> tuple[str, str]:
        """The last turn and the reply in normal form. Two sets must not share an exchange."""
        last = self.history[-1].text if self.history else ""
        return normal_form(last), normal_form(self.reply)

    @property
    def normal_form(self) -> tuple[tuple[Turn, ...], str]:
        """History and reply in normal form, with roles."""
        turns = tuple(Turn(role, normal_form(text)) for role, text in self.history)
        return turns, normal_form(self.reply)


def as_turns(items: Iterable[Any], last: Role = "user") -> tuple[Turn, ...]:
    """Convert turns, messages {"role", "content"} or strings to turns.

    Strings have no roles: roles alternate so that the last string has the role `last`. ValueError
    for a mixture of strings and turns.

    >>> as_turns(["hi", "hello!", "how are you?"])[1]
    Turn(role='assistant', text='hello!')
    """
    items = tuple(items)
    if set(map(type, items)) <= {Turn}:
        return items
    if all(isinstance(item, str) for item in items):
        other: Role = "assistant" if last == "user" else "user"
        ends = len(items) - 1
        return tuple(
            Turn(other if (ends - index) % 2 else last, text) for index, text in enumerate(items)
        )
    turns = [
        Turn(item["role"], item["content"]) if isinstance(item, Mapping) else item for item in items
    ]
    for turn in turns:
        if not isinstance(turn, Turn) or turn.role not in ("user", "assistant"):
            raise ValueError(f"a history holds turns or plain strings, not both; got {turn!r}")
    return tuple(turns)


def before(texts: Iterable[Any], speaker: Author = "bot") -> tuple[Turn, ...]:
    """The history before a reply of `speaker`. Strings get alternating roles; turns are unchanged.

    >>> before(["hello!"], "human")
    (Turn(role='assistant', text='hello!'),)
    """
    return as_turns(texts, "user" if speaker == "bot" else "assistant")


def as_messages(history: Iterable[Turn]) -> list[Message]:
    """The history as messages, for files and chat templates.

    >>> as_messages([Turn("user", "hi")])
    [{'role': 'user', 'content': 'hi'}]
    """
    return [{"role": turn.role, "content": turn.text} for turn in history]


def normal_form(text: str) -> str:
    """The form in which texts are compared: NFKC, case-folded, white space collapsed.

    Format characters (zero-width spaces, soft hyphens, direction marks) are removed.

    >>> normal_form("Caf\\u0065\\u0301\\u200b  NOIR") == normal_form("caf\\u00e9 noir")
    True
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.lower().split())
