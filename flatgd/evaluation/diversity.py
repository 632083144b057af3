"""Distinct n-grams (Li et al. 2016): per history as in the paper's tables, over the whole corpus,
and adjusted for length (Liu et al. 2022)."""

import re
from collections import Counter
from collections.abc import Sequence

_TOKEN = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


def tokenize(text: str) -> list[str]:
    """Words and punctuation marks, lower-cased.

    >>> tokenize("It's fine!")
    ["it's", 'fine', '!']
    """
    return _TOKEN.findall(text.lower())


def distinct(replies: Sequence[str], n: int) -> float | None:
    """Different n-grams of all replies to one history, divided by their tokens; 0..1; None without
    tokens.

    >>> distinct(["a b", "a c"], 1), distinct(["a b", "a c"], 2)
    (0.75, 0.5)
    """
    grams, tokens = _grams(replies, n)
    return len(grams) / tokens if tokens else None


def expectation_adjusted(different: int, tokens: int, vocabulary: int) -> float | None:
    """Different words, divided by the number expected among as many tokens from the vocabulary.

        EAD = D / (V (1 - ((V - 1) / V)^C))                                 (Liu et al. 2022, Eq. 4)

    Unlike D / C it does not fall as texts get longer. None without tokens.

    >>> expectation_adjusted(3, 3, 10**9)
    1.0
    """
    if not tokens or vocabulary < 1:
        return None
    if vocabulary == 1:
        return float(different)
    expected = vocabulary * (1 - ((vocabulary - 1) / vocabulary) ** tokens)
    return round(different / expected, 6)


class Corpus:
    """The n-grams of one model's replies, kept by conversation so that one can be left out."""

    def __init__(self, conversations: Sequence[Sequence[str]], n: int):
        """`conversations`: the replies of each."""
        self.parts = [_grams(replies, n) for replies in conversations]
        self.used = Counter(gram for grams, _ in self.parts for gram in grams)
        self.tokens = sum(tokens for _, tokens in self.parts)

    @property
    def different(self) -> int:
        return len(self.used)

    def without(self) -> list[tuple[int, int]]:
        """(different n-grams, tokens), with each conversation left out in turn."""
        alone = [sum(self.used[gram] == 1 for gram in grams) for grams, _ in self.parts]
        return [
            (self.different - own, self.tokens - tokens)
            for own, (_, tokens) in zip(alone, self.parts, strict=True)
        ]


def _grams(replies: Sequence[str], n: int) -> tuple[set[tuple[str, ...]], int]:
    tokens = [tokenize(reply) for reply in replies]
    grams = {tuple(t[i : i + n]) for t in tokens for i in range(len(t) - n + 1)}
    return grams, sum(map(len, tokens))
