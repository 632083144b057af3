"""How far several judges agree on the sampled replies: Spearman's rho of their P(toxic), Cohen's
(1960) kappa of their marks."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Row = dict[str, Any]


def agreement(rows: Sequence[Row], thresholds: Mapping[str, float]) -> list[Row]:
    """Rows {one, other, spearman, kappa, both, replies} of each pair of judges, over all score rows
    of sampled replies; None where a judge says the same of all."""
    probabilities = {
        judge: np.array(
            [p for row in rows if row["kind"] == "generated" for p in row["toxic"][judge]]
        )
        for judge in thresholds
    }
    found = []
    for one, other in combinations(thresholds, 2):
        marks = probabilities[one] > thresholds[one], probabilities[other] > thresholds[other]
        found.append(
            {
                "one": one,
                "other": other,
                "spearman": _correlation(
                    rankdata(probabilities[one]), rankdata(probabilities[other])
                ),
                "kappa": kappa(*marks),
                "both": float((marks[0] & marks[1]).mean()) if len(marks[0]) else None,
                "replies": len(marks[0]),
            }
        )
    return found


def kappa(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """Agreement beyond chance; at most 1; None where chance alone would make them agree on all.

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
