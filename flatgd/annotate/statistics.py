"""Statistics of annotators' answers: shares, majorities, agreement, and strengths of models.

Pure functions of counts. None means that a figure is undefined.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

Pair = tuple[str, str]


class Share(NamedTuple):
    """k of n as a fraction in [0, 1], with two 95 % intervals: `wilson` (Wilson 1927) and `exact`
    (Clopper and Pearson 1934)."""

    k: int
    n: int
    value: float | None
    wilson: tuple[float, float] | None
    exact: tuple[float, float] | None


def share(k: int, n: int) -> Share:
    """The share k / n with its intervals; undefined for n = 0.

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
    """Two-sided exact p-value of the sign test: a win is as likely as a loss. Leave ties out.

    None without a win or a loss.

    >>> round(sign_test(9, 1), 4)
    0.0215
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else None


def majority(votes: Sequence[Hashable]) -> Hashable | None:
    """The vote that more than half of the votes are for, None without one.

    >>> majority(["a", "b", "a"]), majority(["a", "b"])
    ('a', None)
    """
    most, count = max(Counter(votes).items(), key=lambda item: item[1], default=(None, 0))
    return most if 2 * count > len(votes) else None


def fleiss_kappa(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Fleiss' kappa (1971): agreement beyond chance, at most 1, over items with two or more votes.

    Items may have different numbers of votes. Each item weighs the same in the observed agreement,
    and each vote weighs the same in the agreement expected by chance. None without such an item, or
    if all votes are the same.
    """
    counts = [Counter(votes) for votes in items if len(votes) > 1]
    if not counts:
        return None
    total = sum(counts, Counter())
    number = total.total()
    expected = sum((count / number) ** 2 for count in total.values())
    observed = np.mean(
        [_agreeing(count) / (n * (n - 1)) for count in counts if (n := count.total())]
    )
    return float((observed - expected) / (1 - expected)) if len(total) > 1 else None


def _agreeing(count: Counter[Hashable]) -> int:
    """Number of ordered pairs of votes that agree."""
    return sum(c * (c - 1) for c in count.values())


def krippendorff_alpha(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha (2011) for nominal categories, from the coincidence matrix; at most 1.

    Votes may be missing. None if no item has two votes, or if all votes are the same.
    """
    pairable = [Counter(votes) for votes in items if len(votes) > 1]
    total = sum(pairable, Counter())
    number = total.total()
    if len(total) < 2:
        return None
    agree = sum(_agreeing(count) / (count.total() - 1) for count in pairable)
    expected = _agreeing(total) / (number - 1)
    return 1 - (number - agree) / (number - expected)


class Strength(NamedTuple):
    """A model's log-odds against the average model, and the standard error."""

    value: float
    error: float


def bradley_terry(wins: Mapping[Pair, float], prior: float = 1.0) -> dict[str, Strength]:
    """Strengths s of the models, with P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley-Terry 1952).

    `wins` counts the wins of each (winner, loser); a tie is half a win for each. Each model also
    has `prior` ties against a model of strength 0, so that a model which never lost has a finite
    strength. With few comparisons, this prior pulls strengths towards 0 noticeably. Solved by
    Newton's method; the standard errors come from the penalised likelihood.
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
        s += step / max(1.0, longest)  # longer steps overshoot far from the optimum
        if longest < 1e-12:
            break
    centre = np.eye(len(names)) - 1 / len(names)
    error = np.sqrt(np.diag(centre @ np.linalg.inv(curvature) @ centre))
    s = s - s.mean()
    return {n: Strength(float(s[place[n]]), float(error[place[n]])) for n in names}
