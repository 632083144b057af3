"""A judge's template, filled with a history and a reply."""

from collections.abc import Sequence

from flatgd.config.judge import JudgeSettings
from flatgd.judges.reading import newest

Piece = tuple[str, str]  # (text, HISTORY, REPLY or "" for the template's own text)
HISTORY, REPLY = "{history}", "{reply}"


def render(settings: JudgeSettings, history: Sequence[str], reply: str) -> str:
    """The classifier's input. Authors alternate; the line before the reply is the human's.

    >>> asked = {"template": "{history}|{reply}", "separator": "|", "history_lines": 2}
    >>> asked |= {"kind": "hf", "model": "a/b", "human": "A: ", "bot": "B: "}
    >>> render(JudgeSettings(**asked), ["hi", "hello", "tea?"], "yes")
    'B: hello|A: tea?|B: yes'
    """
    return joined(pieces_of(settings, settings.template, history, reply))


def pieces_of(
    settings: JudgeSettings, template: str, history: Sequence[str], reply: str
) -> list[Piece]:
    """The pieces of the filled template in order, each with its kind."""
    kept = newest(history, settings.history_lines)
    lines = [
        (settings.bot if (len(kept) - place) % 2 == 0 else settings.human) + line
        for place, line in enumerate(kept)
    ]
    text = settings.separator.join(lines)
    pieces: list[Piece] = []
    for side in template.split(REPLY, 1):
        for number, plain in enumerate(side.split(HISTORY)):
            pieces += [(text, HISTORY), (plain, "")] if number else [(plain, "")]
        pieces += [(settings.bot, ""), (reply, REPLY)]
    return pieces[:-2]


def joined(pieces: Sequence[Piece]) -> str:
    return "".join(text for text, _ in pieces).strip()


def places_of(
    pieces: Sequence[Piece], offsets: Sequence[tuple[int, int]]
) -> tuple[list[int], list[int]]:
    """The positions of the history's tokens and of the reply's, from the tokens' offsets.

    >>> places_of([(" hi", HISTORY), ("|", ""), ("no", REPLY)], [(0, 0), (0, 2), (2, 3), (3, 5)])
    ([1], [3])
    """
    whole = "".join(text for text, _ in pieces)
    parts = [part for text, part in pieces for _ in text][len(whole) - len(whole.lstrip()) :]
    of_token = [parts[end - 1] if end > start else "" for start, end in offsets]
    history, reply = (
        [place for place, part in enumerate(of_token) if part == wanted]
        for wanted in (HISTORY, REPLY)
    )
    return history, reply
