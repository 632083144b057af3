"""95 % intervals by bootstrap over conversations.

Replies to histories of one conversation are no independent draws, so whole conversations are
resampled. Every metric here is a function of sums over conversations (a mean is sum / count), so a
conversation is one row of totals and a resample is a weighted sum of rows.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

Totals = NDArray[np.float64]
Statistic = Callable[[Totals], NDArray[np.float64]]


class Estimate(NamedTuple):
    """A value and its 95 % percentile interval; None where it is undefined. `n` is the units."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Estimate(None, None, None)


def ratio(totals: Totals) -> NDArray[np.float64]:
    """sum / count, columns 0 and 1 of the last axis: the mean. NaN where nothing is counted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(totals[..., 0] / totals[..., 1])


def difference_of_means(totals: Totals) -> NDArray[np.float64]:
    """Mean of columns 0, 1 less the mean of columns 2, 3 (sum, count each)."""
    return ratio(totals[..., :2]) - ratio(totals[..., 2:4])


def exp_ratio(totals: Totals) -> NDArray[np.float64]:
    """exp(sum / count): corpus perplexity from nats and tokens."""
    return np.exp(ratio(totals))


def sum_by(keys: Sequence[Hashable], rows: Sequence[Sequence[float]]) -> dict[Hashable, Totals]:
    """The totals of each conversation, in order of first appearance."""
    totals: dict[Hashable, Totals] = {}
    for key, row in zip(keys, rows, strict=True):
        vector = np.asarray(row, dtype=np.float64)
        totals[key] = totals[key] + vector if key in totals else vector
    return totals


def bootstrap(
    by_conversation: dict[Hashable, Totals], statistic: Statistic, resamples: int, seed: int
) -> Estimate:
    """The statistic of all conversations, with a percentile interval.

    One conversation gives a value without an interval; none, or a statistic that is not a number,
    gives UNDEFINED. Resamples in which the statistic is undefined are left out.
    """
    if not by_conversation:
        return UNDEFINED
    totals = np.stack(list(by_conversation.values()))
    value = float(statistic(totals.sum(0)))
    if not np.isfinite(value):
        return UNDEFINED
    if len(totals) == 1:
        return Estimate(value, None, None)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=resamples)
    drawn = statistic(counts @ totals)
    tail = _tail(len(totals))
    low, high = np.quantile(drawn[np.isfinite(drawn)], [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _tail(count: int) -> float:
    """The tail to cut from the resamples of `count` conversations, a little under 0.025.

    A plain percentile interval is too narrow for few units: by sqrt((n-1)/n), the bias of the
    resampled variance, and by normal instead of t quantiles. The expanded percentile interval of
    Hesterberg (2015, section 3.4) undoes both.
    """
    return float(norm.cdf(-np.sqrt(count / (count - 1)) * student_t.ppf(0.975, count - 1)))


def paired(
    ours: dict[Hashable, Totals],
    theirs: dict[Hashable, Totals],
    statistic: Statistic,
    resamples: int,
    seed: int,
) -> Estimate:
    """statistic(ours) - statistic(theirs), both over the same resampled conversations."""
    shared = [key for key in ours if key in theirs]
    both: dict[Hashable, Totals] = {key: np.concatenate([ours[key], theirs[key]]) for key in shared}
    if not both:
        return UNDEFINED
    width = len(ours[shared[0]])
    return bootstrap(
        both, lambda t: statistic(t[..., :width]) - statistic(t[..., width:]), resamples, seed
    )
