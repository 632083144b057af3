"""Prediction-powered toxicity from few annotators' labels and all judge scores. It is unbiased
however poor the judge is (Angelopoulos et al. 2023, Science 382; power tuning: PPI++, 2023).

Let Y be the annotator's label of a reply and f the judge's score. The labelled replies are drawn at
random, and the judge alone scores the rest:

    estimate = mean of (Y - tau f) over the labelled + tau * mean of f over the rest

For any tau its expectation is that of Y; tau = 0 gives the mean of the labels. The tau with the
least variance is used. So a good judge narrows the interval, and a useless one leaves it unchanged.
The unit is the conversation: the variance is that of the conversations' influences.
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

    `labels_only` is the mean of the labels, `tau` the weight of the judge (0..1), and `effective`
    the number of labels that would give the same precision without the judge.
    """

    value: float | None
    low: float | None
    high: float | None
    labels_only: float | None
    tau: float | None
    labels: int
    effective: float | None


def prediction_powered(
    labelled: Sequence[bool],
    judged: Sequence[float],
    conversations: Sequence[Hashable],
    rest: Sequence[float],
    rest_conversations: Sequence[Hashable],
) -> PPEstimate:
    """The share of toxic replies among all.

    `labelled`, `judged` and `conversations` are the label (true: toxic), score (0..1) and
    conversation of each labelled reply. `rest` and `rest_conversations` are the score and
    conversation of every other reply.
    """
    if not len(labelled):
        return PPEstimate(None, None, None, None, None, 0, None)
    y, f = np.asarray(labelled, dtype=np.float64), np.asarray(judged, dtype=np.float64)
    others = np.asarray(rest, dtype=np.float64)
    everyone = dict.fromkeys([*conversations, *rest_conversations])
    number = {conversation: n for n, conversation in enumerate(everyone)}
    at = np.array([number[conversation] for conversation in conversations])
    rest_at = np.array([number[conversation] for conversation in rest_conversations], dtype=int)
    judge = _influence(f, at, len(number)) - _influence(others, rest_at, len(number))
    labels = _influence(y, at, len(number))
    tau = _tau(labels, judge, bool(len(others)))
    shift = tau * (float(others.mean()) - float(f.mean())) if len(others) else 0.0
    own = float(y.mean())
    value = min(1.0, max(0.0, own + shift))
    if (units := len(set(at.tolist()))) < 2:
        return PPEstimate(value, None, None, own, tau, len(y), None)
    padded = (y.sum() + PSEUDO) / (len(y) + 2 * PSEUDO)
    added = (
        PSEUDO * (1 - padded) ** 2 + PSEUDO * padded**2
    )  # what the pseudo-labels add to the variance
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


def _influence(values: Numbers, at: NDArray[np.int_], conversations: int) -> Numbers:
    """Each conversation's contribution to the error of the mean."""
    if not len(values):
        return np.zeros(conversations)
    deviations = (values - values.mean()) / len(values)
    totals = np.bincount(at, weights=deviations, minlength=conversations)
    return np.asarray(totals, dtype=np.float64)


def _tau(labels: Numbers, judge: Numbers, has_rest: bool) -> float:
    """argmin over tau in 0..1 of sum (labels - tau * judge)^2."""
    size = float((judge**2).sum())
    if not has_rest or size == 0.0:
        return 0.0
    return min(1.0, max(0.0, float((labels * judge).sum()) / size))
