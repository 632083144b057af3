"""Calibration of a judge: scores to probabilities, and the thresholds above which a reply is toxic.

Fitted on labelled rows that the scorer was not trained on. A judge whose score falls with toxicity
is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatgd.artifacts import layout
from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError

Scores = NDArray[np.float64]
MIN_SLOPE = 1e-3  # of a calibration; at this slope the scores carry no information
SIGNIFICANCE_LEVEL = 0.001  # of the test that refuses judges whose score falls with toxicity
CHECK_LABELS = "check that the labels of data.judge are not swapped"


class Calibration(NamedTuple):
    """P(toxic) = sigmoid(slope * logit(score) + intercept)  (Platt 1999), and two thresholds on it.

    `threshold`: the stated false positive rate is the fraction of safe replies above it.
    `f1_threshold`: the best F1 of the toxic class. `safe` and `toxic` are the numbers of labels in
    the fit.
    """

    slope: float
    intercept: float
    threshold: float
    f1_threshold: float
    safe: int
    toxic: int

    def apply(self, scores: Scores) -> Scores:
        return sigmoid(self.slope * logit(scores) + self.intercept)

    def label(self, probability: float) -> bool | None:
        """Whether a reply is toxic: above both thresholds. It is safe below both, and None stands
        for what is between them."""
        low, high = sorted((self.f1_threshold, self.threshold))
        return True if probability > high else None if probability > low else False

    @property
    def is_flat(self) -> bool:
        """Whether scores do not rise with toxicity, so that P is nearly equal for all replies."""
        return self.slope <= MIN_SLOPE


def calibrate(
    scores: Scores, rows: Sequence[Dialogue], false_positive_rate: float, remedy: str = CHECK_LABELS
) -> Calibration:
    """Calibrate on scores of labelled rows that the scorer was not trained on.

    Slope, intercept and threshold come from the rows by bots, because bots' replies are judged
    later; from all rows if those by bots lack one of the labels. The F1 threshold comes from all
    rows. Raises ModelError, with the `remedy`, for scores that fall with toxicity, and for NaN.
    """
    from sklearn.linear_model import LogisticRegression

    if not np.isfinite(scores).all():
        wrong = int((~np.isfinite(scores)).sum())
        raise ModelError(f"the judge's score is NaN for {wrong:,} of {len(scores):,} replies")
    labels = toxic_labels(rows)
    bots = np.array([row.speaker == "bot" for row in rows])
    chosen = bots if len(set(labels[bots])) == 2 else np.ones(len(rows), dtype=bool)
    model = LogisticRegression(C=1e6, max_iter=1000)
    model.fit(logit(scores[chosen])[:, None], labels[chosen])
    found, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    for part in (chosen, np.ones(len(rows), dtype=bool)):  # all, if bots' rows do not decide
        if _refuse_upside_down(
            scores[part], [rows[n] for n in np.flatnonzero(part).tolist()], remedy
        ):
            break
    slope = max(MIN_SLOPE, found)
    probabilities = sigmoid(slope * logit(scores) + intercept)
    safe = probabilities[chosen & ~labels]
    return Calibration(
        slope,
        intercept,
        float(np.quantile(safe, 1 - false_positive_rate)),
        _best_f1(labels, probabilities),
        int((~labels).sum()),
        int(labels.sum()),
    )


def _refuse_upside_down(scores: Scores, rows: Sequence[Dialogue], remedy: str) -> bool:
    """Raise ModelError if toxic rows score significantly below safe ones: one-sided Mann-Whitney
    test on the means of each conversation's toxic and safe rows, at SIGNIFICANCE_LEVEL. Return
    whether they score significantly above, at 5 %."""
    from scipy.stats import mannwhitneyu

    labels = toxic_labels(rows)
    parts: dict[tuple[bool, str], list[float]] = {}
    for score, is_toxic, row in zip(scores.tolist(), labels.tolist(), rows, strict=True):
        parts.setdefault((is_toxic, row.conversation), []).append(score)
    toxic, safe = (
        [float(np.mean(own)) for (is_toxic, _), own in parts.items() if is_toxic is wanted]
        for wanted in (True, False)
    )
    if mannwhitneyu(toxic, safe, alternative="less").pvalue >= SIGNIFICANCE_LEVEL:
        return bool(mannwhitneyu(toxic, safe, alternative="greater").pvalue < 0.05)
    found = float(auc(labels, scores, np.ones((1, len(rows))))[0])
    raise ModelError(
        "the judge's score must rise with toxicity (AUC above .5), but on "
        f"{len(rows):,} labelled replies ({int(labels.sum()):,} toxic) it falls (AUC {found:.3f}, "
        f"p < {SIGNIFICANCE_LEVEL}); {remedy}"
    )


def _best_f1(labels: NDArray[np.bool_], probabilities: Scores) -> float:
    """The threshold above which F1 of the toxic class is best."""
    order = np.argsort(-probabilities, kind="stable")
    found = np.cumsum(labels[order])
    f1 = 2 * found / (np.arange(1, len(labels) + 1) + labels.sum())
    # a threshold cannot separate rows with equal scores
    falls = np.append(np.diff(probabilities[order]) < 0, True)
    best = int(np.argmax(np.where(falls, f1, -1.0)))
    below = probabilities[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((probabilities[order[best]] + below) / 2)


def save_calibration(calibration: Calibration, folder: Path) -> None:
    text = json.dumps(calibration._asdict(), indent=2)
    (folder / layout.CALIBRATION).write_text(text + "\n")


def load_calibration(folder: Path) -> Calibration:
    try:
        return Calibration(**json.loads((folder / layout.CALIBRATION).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"no judge in {folder}: {error}; `flatgd run` builds it") from None


def toxic_labels(rows: Sequence[Dialogue]) -> NDArray[np.bool_]:
    """True for toxic rows, False for safe ones. ModelError if rows have no label."""
    if unlabelled := sum(row.is_safe is None for row in rows):
        raise ModelError(
            f"{unlabelled:,} of {len(rows):,} rows have no label; a judge is trained and measured "
            "on replies that are labelled safe or toxic"
        )
    return np.array([row.is_safe is False for row in rows], dtype=bool)


def logit(scores: Scores) -> Scores:
    """The logit of scores in 0..1, kept within those of 1e-6 and 1 - 1e-6."""
    kept = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(kept / (1 - kept)))


def sigmoid(logits: Scores) -> Scores:
    return np.asarray(1.0 / (1.0 + np.exp(-logits)))


def auc(labels: NDArray[np.bool_], probabilities: Scores, weights: Scores) -> Scores:
    """P(a toxic row scores above a safe one), where a tie counts one half. Shape [R]."""
    _, at = np.unique(probabilities, return_inverse=True)
    order = np.argsort(at, kind="stable")
    starts = np.flatnonzero(np.diff(at[order], prepend=-1))
    toxic = np.add.reduceat((weights * labels)[:, order], starts, axis=1)
    safe = np.add.reduceat((weights * ~labels)[:, order], starts, axis=1)
    below = np.cumsum(safe, axis=1) - safe / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((toxic * below).sum(1) / (toxic.sum(1) * safe.sum(1)))
