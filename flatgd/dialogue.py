"""The one record that flows through the project: a conversation and a labelled reply."""

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

Role = Literal["user", "assistant"]
Speaker = Literal["human", "bot"]


class Message(TypedDict):
    """A turn as files and chat templates have it."""

    role: Role
    content: str


class Turn(NamedTuple):
    """What one side says, as written."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A history and one reply to it.

    `history` is oldest turn first. It also takes plain strings: they alternate, and the last one is
    of the side that the reply answers. `is_safe` is the human label of the reply, None where there
    is none. `conversation` names what rows belong together: a split never cuts through one.
    `speaker` is who gave the reply. `system` is the system message, "" where there is none. `where`
    is the file and line of the row, for messages alone.
    """

    history: tuple[Turn, ...]
    reply: str
    is_safe: bool | None
    source: str
    conversation: str
    speaker: Speaker = "bot"
    system: str = ""
    where: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "history", before(self.history, self.speaker))

    @property
    def texts(self) -> tuple[str, ...]:
        """The history without its roles."""
        return tuple(turn.text for turn in self.history)

    @property
    def exchange(self) -> tuple[str, str]:
        """The last turn and the reply in normal form: what two sets must not share."""
        last = self.history[-1].text if self.history else ""
        return normal_form(last), normal_form(self.reply)

    @property
    def normal_form(self) -> tuple[tuple[Turn, ...], str]:
        """History and reply in normal form, roles as they are."""
        turns = tuple(Turn(role, normal_form(text)) for role, text in self.history)
        return turns, normal_form(self.reply)


def as_turns(items: Iterable[Any], last: Role = "user") -> tuple[Turn, ...]:
    """Turns from turns, from messages {"role", "content"}, or from strings.

    Strings have no roles: they alternate, and the last one is of the role `last`. ValueError where
    strings stand beside turns.

    >>> as_turns(["hi", "hello!", "how are you?"])[1]
    Turn(role='assistant', text='hello!')
    """
    items = tuple(items)
    if all(type(item) is Turn for item in items):
        return items
    if all(isinstance(item, str) for item in items):
        other: Role = "assistant" if last == "user" else "user"
        ends = len(items) - 1
        return tuple(
            Turn(other if (ends - place) % 2 else last, text) for place, text in enumerate(items)
        )
    turns = [
        Turn(item["role"], item["content"]) if isinstance(item, Mapping) else item for item in items
    ]
    for turn in turns:
        if not isinstance(turn, Turn) or turn.role not in ("user", "assistant"):
            raise ValueError(f"a history holds turns or plain strings, not both; got {turn!r}")
    return tuple(turns)


def before(texts: Iterable[Any], speaker: Speaker = "bot") -> tuple[Turn, ...]:
    """The history before a reply of `speaker`: strings alternate, turns stay as they are.

    >>> before(["hello!"], "human")
    (Turn(role='assistant', text='hello!'),)
    """
    return as_turns(texts, "user" if speaker == "bot" else "assistant")


def as_messages(history: Iterable[Turn]) -> list[Message]:
    """The history as files and chat templates have it.

    >>> as_messages([Turn("user", "hi")])
    [{'role': 'user', 'content': 'hi'}]
    """
    return [{"role": turn.role, "content": turn.text} for turn in history]


def normal_form(text: str) -> str:
    """The form in which two texts are compared: NFKC, no format characters (zero-width spaces,
    soft hyphens, direction marks), case and white space folded.

    >>> normal_form("Caf\\u0065\\u0301\\u200b  NOIR") == normal_form("caf\\u00e9 noir")
    True
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.lower().split())
