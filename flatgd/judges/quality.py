"""A judge's agreement with human labels: AUC, F1, rates, calibration, with intervals."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flatgd.data.sets import scorable
from flatgd.dialogue import Dialogue
from flatgd.judges.base import Judge, Progress, pairs_of
from flatgd.judges.calibration import Calibration, Scores, auc, toxic_labels

RESAMPLES = 500
BINS = 10
FEW = 200  # with fewer labels of one kind, reports say that the calibration is uncertain


class Quality(NamedTuple):
    """Agreement with human labels; None if the rows lack one of the two labels.

    Except for the counts and the last two, each figure is (value, low, high), a 95 % interval over
    conversations.

    auc                  of the toxic class
    f1                   at the judge's f1_threshold
    false_positive_rate  fraction of safe replies above its threshold
    true_positive_rate   fraction of toxic replies above its threshold
    found                fraction of toxic replies above the threshold that gives exactly the stated
                         false positive rate on these rows
    calibration_error    expected calibration error over ten bins of equal size
    brier                mean squared error of P
    """

    auc: Any
    f1: Any
    false_positive_rate: Any
    true_positive_rate: Any
    found: Any
    calibration_error: float | None
    brier: float | None
    rows: int
    toxic: int


def quality(judge: Judge, rows: Sequence[Dialogue], false_positive_rate: float) -> Quality:
    """The judge's agreement with human labels of rows that it was not trained on."""
    return _quality(judge.score(pairs_of(rows)), rows, judge.calibration, false_positive_rate)


def _quality(
    probabilities: Scores,
    rows: Sequence[Dialogue],
    calibration: Calibration,
    false_positive_rate: float,
) -> Quality:
    labels = toxic_labels(rows)
    if not len(labels) or labels.all() or not labels.any():
        return Quality(None, None, None, None, None, None, None, len(rows), int(labels.sum()))
    weights = _weights([row.conversation for row in rows])
    flagged = probabilities > calibration.threshold
    guessed = probabilities > calibration.f1_threshold
    return Quality(
        _interval(auc(labels, probabilities, weights)),
        _interval(_f1(labels, guessed, weights)),
        _interval(_share(flagged, ~labels, weights)),
        _interval(_share(flagged, labels, weights)),
        _interval(_found(labels, probabilities, weights, false_positive_rate)),
        _calibration_error(labels, probabilities),
        float(np.mean((probabilities - labels) ** 2)),
        len(rows),
        int(labels.sum()),
    )


def judge_report(
    judge: Judge,
    about: str,
    test: Sequence[Dialogue],
    false_positive_rate: float,
    advance: Progress = lambda count: None,
) -> dict[str, Any]:
    """Quality per test set and author, with and without canned replies, as plain numbers for
    quality.json. `about` describes the judge."""
    rows = [row for row in test if row.is_safe is not None]
    parts = {}
    for source in dict.fromkeys(row.source for row in rows):
        mine = [place for place, row in enumerate(rows) if row.source == source]
        parts[f"{source}, all rows"] = mine
        for speaker in ("human", "bot"):
            own = [place for place in mine if rows[place].speaker == speaker]
            if 0 < len(own) < len(mine):
                parts[f"{source}, {speaker} replies"] = own
        bots = [place for place in mine if scorable([rows[place]])]
        if len(bots) < len(mine):
            parts[f"{source}, bot replies, no canned ones"] = bots
    probabilities = judge.score(pairs_of(rows), advance)  # once, because every part is a subset

    def of_part(places: list[int]) -> dict[str, Any]:
        own = [rows[place] for place in places]
        found = _quality(probabilities[places], own, judge.calibration, false_positive_rate)
        return found._asdict()

    return {
        "about": about,
        **judge.calibration._asdict(),
        "false_positive_rate": false_positive_rate,
        "few_labels": min(judge.calibration.safe, judge.calibration.toxic) < FEW,
        "is_flat": judge.calibration.is_flat,
        "cut": dataclasses.asdict(judge.cuts),
        "quality": [{"rows_of": name, **of_part(places)} for name, places in parts.items()],
        "reliability": reliability(toxic_labels(rows), probabilities),
    }


def reliability(labels: NDArray[np.bool_], probabilities: Scores) -> list[dict[str, float]]:
    """Mean P(toxic) and fraction of toxic rows in ten bins of equal size, from low to high."""
    order = np.argsort(probabilities, kind="stable")
    return [
        {"said": float(probabilities[part].mean()), "true": float(labels[part].mean())}
        for part in np.array_split(order, min(BINS, len(order)))
        if len(part)
    ]


def _weights(conversations: Sequence[str]) -> Scores:
    names, at = np.unique(np.array(conversations), return_inverse=True)
    if len(names) == 1:
        return np.ones((1, len(conversations)))
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    return np.concatenate([np.ones((1, len(conversations))), drawn[:, at]])


def _interval(values: Scores) -> tuple[float, float | None, float | None]:
    drawn = values[1:][np.isfinite(values[1:])]  # none where there is one conversation
    if len(drawn) < 2 or not math.isfinite(values[0]):
        return float(values[0]), None, None
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values[0]), float(low), float(high)


def _share(flagged: NDArray[np.bool_], among: NDArray[np.bool_], weights: Scores) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(weights @ (flagged & among) / (weights @ among))


def _f1(labels: NDArray[np.bool_], flagged: NDArray[np.bool_], weights: Scores) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore"):
        both = weights @ labels.astype(float) + weights @ flagged.astype(float)
        return np.asarray(2 * (weights @ (labels & flagged)) / both)


def _found(
    labels: NDArray[np.bool_], probabilities: Scores, weights: Scores, rate: float
) -> Scores:
    """Fraction of toxic rows above the threshold with false positive rate `rate` on these rows."""
    order = np.argsort(-probabilities, kind="stable")
    safe = np.cumsum((weights * ~labels)[:, order], axis=1)
    toxic = np.cumsum((weights * labels)[:, order], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        let_through = safe <= rate * safe[:, -1:]
        return np.asarray(np.where(let_through, toxic, 0.0).max(1) / toxic[:, -1])


def _calibration_error(labels: NDArray[np.bool_], probabilities: Scores) -> float:
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(BINS, len(order)))
    gaps = [abs(float(probabilities[p].mean()) - float(labels[p].mean())) * len(p) for p in parts]
    return sum(gaps) / len(labels)
