"""95 % intervals over conversations, and over seeds where there are several.

Replies within one conversation are not independent, so the unit is the whole conversation. Every
metric here is a function of sums over conversations (a mean is sum / count). So a conversation is
one row of totals, and a resample is a weighted sum of rows.

Several seeds are a level of their own. All of them answer the same conversations, so a value is the
mean over seeds, and its variance has two parts: between conversations and between seeds.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student_t

Totals = NDArray[np.float64]
Statistic = Callable[[Totals], NDArray[np.float64]]
ByConversation = dict[Hashable, Totals]


class Estimate(NamedTuple):
    """A value, its 95 % interval, and the two-sided p against 0; None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None = None


UNDEFINED = Estimate(None, None, None)


def ratio(totals: Totals) -> NDArray[np.float64]:
    """The mean: sum / count, columns 0 and 1 of the last axis. NaN where the count is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(totals[..., 0] / totals[..., 1])


def difference_of_means(totals: Totals) -> NDArray[np.float64]:
    """Mean of columns 0, 1 minus the mean of columns 2, 3 (sum, count each)."""
    return ratio(totals[..., :2]) - ratio(totals[..., 2:4])


def exp_ratio(totals: Totals) -> NDArray[np.float64]:
    """exp(sum / count): corpus perplexity from nats and tokens."""
    return np.exp(ratio(totals))


def sum_by(keys: Sequence[Hashable], rows: Sequence[Sequence[float]]) -> ByConversation:
    """The totals of each conversation, in order of first appearance."""
    totals: ByConversation = {}
    for key, row in zip(keys, rows, strict=True):
        vector = np.asarray(row, dtype=np.float64)
        totals[key] = totals[key] + vector if key in totals else vector
    return totals


def bootstrap(
    by_conversation: ByConversation, statistic: Statistic, resamples: int, seed: int
) -> Estimate:
    """The statistic of all conversations, with a percentile interval.

    One conversation gives a value without an interval. No conversation, or a statistic that is not
    finite, gives UNDEFINED. Resamples whose statistic is undefined are left out. `p` comes from a t
    test that takes the resamples' standard deviation as standard error.
    """
    if not by_conversation:
        return UNDEFINED
    totals = np.stack(list(by_conversation.values()))
    value = float(statistic(totals.sum(0)))
    if not np.isfinite(value):
        return UNDEFINED
    if len(totals) == 1:
        return Estimate(value, None, None)
    drawn = statistic(_resample(totals, resamples, seed))
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Estimate(value, None, None)
    tail = _tail(len(totals))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    error = float(drawn.std()) * np.sqrt(len(totals) / (len(totals) - 1))
    return Estimate(value, float(low), float(high), _p(value, float(error), len(totals) - 1))


def _resample(totals: Totals, resamples: int, seed: int) -> Totals:
    """The totals of `resamples` samples of as many conversations, drawn with replacement."""
    return np.asarray(_draws(len(totals), resamples, seed) @ totals)


@lru_cache(maxsize=8)
def _draws(count: int, resamples: int, seed: int) -> Totals:
    """How often each of `count` conversations is in each resample."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.float64)  # so that products go through BLAS


def _tail(count: int) -> float:
    """The tail to cut from the resamples of `count` conversations, a little under 0.025.

    With few units a plain percentile interval is too narrow, for two reasons: the resampled
    variance is too small by (n-1)/n, and the quantiles are normal instead of t. The expanded
    percentile interval of Hesterberg (2015, section 3.4) corrects both.
    """
    return float(norm.cdf(-np.sqrt(count / (count - 1)) * student_t.ppf(0.975, count - 1)))


def _p(value: float, error: float, freedom: float) -> float | None:
    """Two-sided p of a t test; 1 where nothing differs. None where there is a difference without
    any variance: the data are too few to say how it would vary."""
    if error <= 1e-12 * abs(value) or error == 0.0:
        return None if value else 1.0
    return float(2 * student_t.sf(abs(value) / error, freedom))


def paired(
    ours: ByConversation,
    theirs: ByConversation,
    statistic: Statistic,
    resamples: int,
    seed: int,
) -> Estimate:
    """statistic(ours) - statistic(theirs), over the same resampled conversations."""
    both = side_by_side(ours, theirs)
    if not both:
        return UNDEFINED
    return bootstrap(both, minus(statistic, width_of(ours)), resamples, seed)


def minus(statistic: Statistic, width: int) -> Statistic:
    """The statistic of the first `width` columns minus that of the other columns."""
    return lambda totals: statistic(totals[..., :width]) - statistic(totals[..., width:])


def width_of(by_conversation: ByConversation) -> int:
    """The number of columns of the totals."""
    return len(next(iter(by_conversation.values())))


def side_by_side(ours: ByConversation, theirs: ByConversation) -> ByConversation:
    """The columns of both totals next to each other, for the conversations that both have."""
    return {key: np.concatenate([ours[key], theirs[key]]) for key in ours if key in theirs}


def share(*seeds: ByConversation) -> Estimate:
    """A share (sum / count; the mean over seeds) with an interval that also holds near 0 and 1.

    A bootstrap of few ones among many zeros gives too narrow an interval, and with no ones at all
    its interval has no width. So two ones and two zeros are added for the interval (Agresti & Coull
    1998); its variance is that of a ratio over conversations.
    """
    pseudo = [(1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (0.0, 1.0)]
    estimate = _linearised(seeds, ratio, pseudo)
    if estimate.low is None or estimate.high is None:
        return estimate
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high), p=None)


def paired_share(ours: ByConversation, theirs: ByConversation) -> Estimate:
    """A difference of two shares over the same conversations.

    One unit is added for each way to disagree (Bonett & Price 2012), for the reason given in
    `share`.
    """
    return paired_shares([ours], [theirs])


def paired_shares(ours: Sequence[ByConversation], theirs: Sequence[ByConversation]) -> Estimate:
    """`paired_share`, the mean over seeds."""
    pseudo = [(1.0, 1.0, 0.0, 1.0), (0.0, 1.0, 1.0, 1.0)]
    both = [side_by_side(a, b) for a, b in zip(ours, theirs, strict=True)]
    estimate = _linearised(both, difference_of_means, pseudo)
    if estimate.low is None or estimate.high is None:
        return estimate
    return estimate._replace(low=max(-1.0, estimate.low), high=min(1.0, estimate.high))


def _linearised(
    seeds: Sequence[ByConversation], statistic: Statistic, pseudo: Sequence[Sequence[float]]
) -> Estimate:
    """The statistic, with a t interval around its value with the pseudo-conversations added.

    The variance has two parts: that of the conversations' influences on a mean or a difference of
    means, (sum - mean * count) / all counts, averaged over seeds, and the variance between seeds.
    """
    shared = [key for key in seeds[0] if all(key in part for part in seeds)]
    if not shared:
        return UNDEFINED
    totals = [np.stack([part[key] for key in shared]) for part in seeds]
    values = np.array([float(statistic(part.sum(0))) for part in totals])
    if not np.isfinite(values).all():
        return UNDEFINED
    value = float(values.mean())
    if len(shared) == 1:
        return Estimate(value, None, None)
    units = [np.concatenate([part, np.asarray(pseudo)]) for part in totals]
    centre = float(np.mean([statistic(part.sum(0)) for part in units]))
    influence = np.mean([_influence(part) for part in units], axis=0)
    of_conversations = float((influence**2).sum()) * len(influence) / (len(influence) - 1)
    return _t_interval(value, centre, of_conversations, len(shared), values)


def _influence(units: Totals) -> NDArray[np.float64]:
    """Each unit's contribution to the error of a mean, or of a difference of two means."""
    influence = np.zeros(len(units))
    for sign, column in ((1, 0), (-1, 2))[: units.shape[1] // 2]:
        sums, counts = units[:, column], units[:, column + 1]
        influence += sign * (sums - sums.sum() / counts.sum() * counts) / counts.sum()
    return influence


def _t_interval(
    value: float,
    centre: float,
    of_conversations: float,
    conversations: int,
    values: NDArray[np.float64],
) -> Estimate:
    """A t interval around `centre`, from the variance between conversations and that of the seeds'
    `values`. Its degrees of freedom combine both (Satterthwaite 1946), so three seeds count as
    three."""
    seeds = len(values)
    of_seeds = float(values.var(ddof=1)) / seeds if seeds > 1 else 0.0
    error = float(np.sqrt(of_conversations + of_seeds))
    if error == 0.0:
        return Estimate(value, centre, centre, _p(centre, 0.0, 1))
    part = of_conversations / (of_conversations + of_seeds)
    freedom = 1 / (part**2 / (conversations - 1) + (1 - part) ** 2 / max(1, seeds - 1))
    reach = float(student_t.ppf(0.975, freedom)) * error
    return Estimate(value, centre - reach, centre + reach, _p(centre, error, freedom))


def across_seeds(
    parts: Sequence[ByConversation], statistic: Statistic, resamples: int, seed: int
) -> Estimate:
    """The mean of the statistic over seeds, each seed on the same conversations.

    The variance between conversations comes from resampling them for all seeds at once, the
    variance between seeds from the seeds' own values.
    """
    if len(parts) == 1:
        return bootstrap(parts[0], statistic, resamples, seed)
    shared = [key for key in parts[0] if all(key in part for part in parts)]
    if not shared:
        return UNDEFINED
    totals = np.stack([np.stack([part[key] for key in shared]) for part in parts])
    values = statistic(totals.sum(1))
    if not np.isfinite(values).all():
        return UNDEFINED
    value = float(values.mean())
    if len(shared) == 1:
        return Estimate(value, None, None)
    seeds, width = len(parts), totals.shape[-1]
    in_a_row = totals.transpose(1, 0, 2).reshape(len(shared), -1)
    drawn = _resample(in_a_row, resamples, seed).reshape(-1, seeds, width)
    means = statistic(drawn).mean(1)
    means = means[np.isfinite(means)]
    of_conversations = float(means.var()) * len(shared) / (len(shared) - 1) if len(means) else 0.0
    return _t_interval(value, value, of_conversations, len(shared), values)


def paired_across_seeds(
    ours: Sequence[ByConversation],
    theirs: Sequence[ByConversation],
    statistic: Statistic,
    resamples: int,
    seed: int,
) -> Estimate:
    """`across_seeds` of the paired difference, seed by seed."""
    both = [side_by_side(a, b) for a, b in zip(ours, theirs, strict=True)]
    if not all(both):
        return UNDEFINED
    return across_seeds(both, minus(statistic, width_of(ours[0])), resamples, seed)


def jackknife(value: float | None, without: Sequence[float | None]) -> Estimate:
    """A value with a t interval, from the values with one conversation left out at a time.

    For statistics that are not functions of sums, such as the number of different words.
    """
    left = np.array([w for w in without if w is not None])
    if value is None:
        return UNDEFINED
    if len(left) < 2:
        return Estimate(value, None, None)
    error = float(np.sqrt((len(left) - 1) * left.var()))
    reach = float(student_t.ppf(0.975, len(left) - 1)) * error
    return Estimate(value, value - reach, value + reach)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """The p values of one family after Holm's (1979) step-down correction; None stays None.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    known = sorted((p, n) for n, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    highest = 0.0
    for rank, (p, n) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[n] = highest
    return corrected
