"""Canned replies: the fixed sentence with which BAD's bots change the subject.

They are labelled safe. A model trained on them learns to evade, and a judge learns to recognise the
evasion (the paper's Appendix E). They are dropped as targets and stripped from histories.
"""

import dataclasses
import re

from flatgd.dialogue import Dialogue

_CANNED = re.compile(r"\bdo you want to talk about something else\b", re.IGNORECASE)


def is_canned(text: str) -> bool:
    """
    >>> is_canned("Hey do you want to talk about something else? How about we talk about cats?")
    True
    """
    if text.isascii() and "something else" not in text.lower():
        return False  # what the expression would find too, in a tenth of the time
    return _CANNED.search(text) is not None


def strip_canned(row: Dialogue) -> Dialogue:
    """The row with canned turns removed from its history."""
    history = tuple(turn for turn in row.history if not is_canned(turn.text))
    return row if len(history) == len(row.history) else dataclasses.replace(row, history=history)
