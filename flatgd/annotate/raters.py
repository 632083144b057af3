"""What the answers of several people are worth together: agreement, majorities, ranks.

Pure functions of counts. None where a figure is undefined.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

Pair = tuple[str, str]


class Share(NamedTuple):
    """k of n, with 95 % intervals: Wilson's (1927) and the exact one (Clopper and Pearson 1934)."""

    k: int
    n: int
    value: float | None
    wilson: tuple[float, float] | None
    exact: tuple[float, float] | None


def share(k: int, n: int) -> Share:
    """
    >>> [round(bound, 3) for bound in share(35, 50).wilson]
    [0.562, 0.809]
    >>> share(0, 0).value
    """
    if not n:
        return Share(k, n, None, None, None)
    test = binomtest(k, n)
    wilson, exact = (test.proportion_ci(method=method) for method in ("wilson", "exact"))
    return Share(k, n, k / n, _bounds(wilson), _bounds(exact))


def _bounds(interval: Sequence[float]) -> tuple[float, float]:
    return float(interval[0]), float(interval[1])


def sign_test(wins: int, losses: int) -> float | None:
    """Two-sided exact p that both are as likely; ties left out beforehand.

    >>> round(sign_test(9, 1), 4)
    0.0215
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else None


def majority(votes: Sequence[Hashable]) -> Hashable | None:
    """What more than half say.

    >>> majority(["a", "b", "a"]), majority(["a", "b"])
    ('a', None)
    """
    most, count = max(Counter(votes).items(), key=lambda item: item[1], default=(None, 0))
    return most if 2 * count > len(votes) else None


def fleiss_kappa(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Agreement beyond chance over all items with at least two votes (Fleiss 1971), 1 at most.

    Items may have different numbers of votes: each item's agreement counts once, each vote counts
    once in what chance would give. None where there is no such item, or all votes are the same.
    """
    counts = [Counter(votes) for votes in items if len(votes) > 1]
    if not counts:
        return None
    total = sum(counts, Counter())
    number = total.total()
    by_chance = sum((count / number) ** 2 for count in total.values())
    observed = np.mean(
        [_agreeing(count) / (n * (n - 1)) for count in counts if (n := count.total())]
    )
    return float((observed - by_chance) / (1 - by_chance)) if len(total) > 1 else None


def _agreeing(count: Counter[Hashable]) -> int:
    """Ordered pairs of votes that agree."""
    return sum(c * (c - 1) for c in count.values())


def krippendorff_alpha(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal categories, from the coincidence matrix; votes may be
    missing (Krippendorff 2011). 1 at most; None where nothing can be paired, or all is the same."""
    pairable = [Counter(votes) for votes in items if len(votes) > 1]
    total = sum(pairable, Counter())
    number = total.total()
    if len(total) < 2:
        return None
    agree = sum(_agreeing(count) / (count.total() - 1) for count in pairable)
    expected = _agreeing(total) / (number - 1)
    return 1 - (number - agree) / (number - expected)


class Strength(NamedTuple):
    """Log-odds against the average of the models, and their standard error."""

    value: float
    error: float


def bradley_terry(wins: Mapping[Pair, float], prior: float = 1.0) -> dict[str, Strength]:
    """Strengths s with P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley and Terry 1952).

    `wins` maps (winner, loser) to how often, a tie as half a win for each. Each model has `prior`
    further ties with one of strength 0, so that one which never lost has a finite strength; they
    add up to what is far from it where there are few comparisons. Newton's method; the standard
    errors are of the penalised likelihood.
    """
    names = sorted({name for pair in wins for name in pair})
    if not names:
        return {}
    place = {name: at for at, name in enumerate(names)}
    W = np.zeros((len(names), len(names)))
    for (winner, loser), count in wins.items():
        W[place[winner], place[loser]] += count
    games = W + W.T
    s = np.zeros(len(names))
    for _ in range(100):
        P = 1 / (1 + np.exp(s[None, :] - s[:, None]))  # P[i, j]: i beats j
        own = 1 / (1 + np.exp(-s))
        slope = W.sum(1) - (games * P).sum(1) + prior * (0.5 - own)
        spread = games * P * (1 - P)
        curvature = np.diag(spread.sum(1) + prior * own * (1 - own)) - spread
        step = np.linalg.solve(curvature, slope)
        longest = float(np.abs(step).max())
        s += step / max(1.0, longest)  # beyond 1 it overshoots, far from the end
        if longest < 1e-12:
            break
    centre = np.eye(len(names)) - 1 / len(names)
    error = np.sqrt(np.diag(centre @ np.linalg.inv(curvature) @ centre))
    s = s - s.mean()
    return {n: Strength(float(s[place[n]]), float(error[place[n]])) for n in names}
