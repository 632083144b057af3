"""Distinct n-grams (Li et al. 2016), in the reading of the paper's tables: per history."""

import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Words and punctuation marks, lower-cased.

    >>> tokenize("It's fine!")
    ["it's", 'fine', '!']
    """
    return _TOKEN.findall(text.lower())


def distinct(replies: Sequence[str], n: int) -> float | None:
    """Different n-grams over tokens of all replies to one history; 0..1; None without tokens.

    >>> distinct(["a b", "a c"], 1), distinct(["a b", "a c"], 2)
    (0.75, 0.5)
    """
    tokens = [tokenize(reply) for reply in replies]
    count = sum(map(len, tokens))
    grams = {tuple(t[i : i + n]) for t in tokens for i in range(len(t) - n + 1)}
    return len(grams) / count if count else None
