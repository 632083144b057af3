"""Prediction-powered toxicity: few human labels and all judge scores, unbiased however poor the
judge (Angelopoulos et al. 2023, Science 382; power tuning: PPI++, 2023).

With Y the human label of a reply, f the judge's score, n labelled replies drawn at random and the
rest of the replies scored by the judge alone:

    estimate = mean of (Y - tau f) over the labelled + tau * mean of f over the rest

For any tau its expectation is that of Y. tau = 0 is the labels' own mean; the tau that makes the
variance least is used, so a judge that knows something narrows the interval and one that knows
nothing leaves it as it was. Conversations are the units: the variance is that of their influences.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

Numbers = NDArray[np.float64]
PSEUDO = 2  # of each label, for the interval alone (Agresti & Coull 1998)


class PPEstimate(NamedTuple):
    """A share of toxic replies with its 95 % interval; None where undefined.

    `labels_only` is the labels' own mean, `tau` the weight of the judge (0..1), `effective` how
    many labels would have done as well without the judge.
    """

    value: float | None
    low: float | None
    high: float | None
    labels_only: float | None
    tau: float | None
    labels: int
    effective: float | None


def prediction_powered(
    human: Sequence[bool],
    judged: Sequence[float],
    talks: Sequence[Hashable],
    rest: Sequence[float],
    rest_talks: Sequence[Hashable],
) -> PPEstimate:
    """The share of toxic replies among all.

    `human`, `judged`, `talks`: label, score (0..1) and conversation of each labelled reply; `rest`,
    `rest_talks`: score and conversation of every other one.
    """
    if not len(human):
        return PPEstimate(None, None, None, None, None, 0, None)
    y, f = np.asarray(human, dtype=np.float64), np.asarray(judged, dtype=np.float64)
    others = np.asarray(rest, dtype=np.float64)
    names = {talk: place for place, talk in enumerate(dict.fromkeys([*talks, *rest_talks]))}
    at = np.array([names[talk] for talk in talks])
    rest_at = np.array([names[talk] for talk in rest_talks], dtype=int)
    judge = _influence(f, at, len(names)) - _influence(others, rest_at, len(names))
    labels = _influence(y, at, len(names))
    tau = _tau(labels, judge, bool(len(others)))
    shift = tau * (float(others.mean()) - float(f.mean())) if len(others) else 0.0
    own = float(y.mean())
    value = min(1.0, max(0.0, own + shift))
    if (units := len(set(at.tolist()))) < 2:
        return PPEstimate(value, None, None, own, tau, len(y), None)
    padded = (y.sum() + PSEUDO) / (len(y) + 2 * PSEUDO)
    added = PSEUDO * (1 - padded) ** 2 + PSEUDO * padded**2  # the pseudo-labels' own share of it
    shrunk = (labels * len(y) - tau * judge * len(y)) / (len(y) + 2 * PSEUDO)
    variance = (shrunk**2).sum() * units / (units - 1) + added / (len(y) + 2 * PSEUDO) ** 2
    reach = float(student_t.ppf(0.975, units - 1)) * float(np.sqrt(variance))
    centre = padded + shift
    plain = (labels**2).sum() / max(float(((labels - tau * judge) ** 2).sum()), 1e-300)
    return PPEstimate(
        value,
        max(0.0, centre - reach),
        min(1.0, centre + reach),
        own,
        tau,
        len(y),
        len(y) * float(plain) if own not in (0.0, 1.0) else None,
    )


def _influence(values: Numbers, at: NDArray[np.int_], talks: int) -> Numbers:
    """What each conversation adds to the error of the mean."""
    if not len(values):
        return np.zeros(talks)
    deviations = (values - values.mean()) / len(values)
    return np.asarray(np.bincount(at, weights=deviations, minlength=talks), dtype=np.float64)


def _tau(labels: Numbers, judge: Numbers, has_rest: bool) -> float:
    """argmin over tau in 0..1 of sum (labels - tau * judge)^2."""
    size = float((judge**2).sum())
    if not has_rest or size == 0.0:
        return 0.0
    return min(1.0, max(0.0, float((labels * judge).sum()) / size))
