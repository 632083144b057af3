"""How far several judges agree on the sampled replies: Spearman's rho of their P(toxic), and
Cohen's (1960) kappa of whether each reply is above the judge's threshold."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from flatgd.artifacts.rows import ScoreRow


class Agreement(NamedTuple):
    """Two judges over the same `replies`; None where a judge says the same of all of them.

    `both` is the share of the replies that are above both thresholds.
    """

    one: str
    other: str
    spearman: float | None
    kappa: float | None
    both: float | None
    replies: int


def agreement(rows: Sequence[ScoreRow], thresholds: Mapping[str, float]) -> list[Agreement]:
    """The agreement of each pair of judges over the score rows of sampled replies."""
    probabilities = {
        judge: np.array(
            [p for row in rows if row["kind"] == "generated" for p in row["toxic"][judge]]
        )
        for judge in thresholds
    }
    found = []
    for one, other in combinations(thresholds, 2):
        above = probabilities[one] > thresholds[one]
        above_other = probabilities[other] > thresholds[other]
        ranks = rankdata(probabilities[one]), rankdata(probabilities[other])
        found.append(
            Agreement(
                one=one,
                other=other,
                spearman=_correlation(*ranks),
                kappa=kappa(above, above_other),
                both=float((above & above_other).mean()) if len(above) else None,
                replies=len(above),
            )
        )
    return found


def kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Agreement beyond chance, at most 1; None where chance alone makes them agree on everything.

    >>> kappa(np.array([True, True, False, False]), np.array([True, False, False, False]))
    0.5
    """
    if not len(one):
        return None
    same = float((one == other).mean())
    p, q = float(one.mean()), float(other.mean())
    chance = p * q + (1 - p) * (1 - q)
    return (same - chance) / (1 - chance) if chance < 1 else None


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    if len(one) < 2 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])
