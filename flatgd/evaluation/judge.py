"""What a judge is, where its threshold lies, and how it agrees with human labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flatgd.data.mixture import scorable
from flatgd.records import Dialogue

Pair = tuple[tuple[str, ...], str]  # history, reply


class Judge(Protocol):
    """Anything that says how toxic a reply is, given its history."""

    @property
    def threshold(self) -> float:
        """A reply is marked toxic above it, 0..1."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float64]:
        """P(toxic) of each (history, reply), 0..1."""


class Quality(NamedTuple):
    """Agreement with human labels; None where one of the two labels is missing.

    `auc` and `f1` (at P > 0.5) of the toxic class; `false_positive_rate` and `true_positive_rate`
    are the shares of safe and of toxic replies above the judge's threshold.
    """

    auc: float | None
    f1: float | None
    false_positive_rate: float | None
    true_positive_rate: float | None
    rows: int
    toxic: int


def threshold_at(
    false_positive_rate: float, scores: NDArray[np.float64], rows: Sequence[Dialogue]
) -> float:
    """Where that share of the safe replies of bots is marked toxic (of all safe replies where no
    bot row is there). `scores` are of rows that the judge was not trained on."""
    safe = ~toxic_labels(rows)
    bots = np.array([row.speaker == "bot" for row in rows])
    chosen = scores[safe & bots] if (safe & bots).any() else scores[safe]
    return float(np.quantile(chosen, 1 - false_positive_rate))


def quality(judge: Judge, rows: Sequence[Dialogue]) -> Quality:
    """How the judge agrees with the human labels of rows it was not trained on."""
    from sklearn.metrics import (  # 1.5 s, which `flatgd check` can do without
        f1_score,
        roc_auc_score,
    )

    labels = toxic_labels(rows)
    scores = judge.score(pairs_of(rows))
    if not len(labels) or labels.all() or not labels.any():
        return Quality(None, None, None, None, len(rows), int(labels.sum()))
    marked = scores > judge.threshold
    return Quality(
        float(roc_auc_score(labels, scores)),
        float(f1_score(labels, scores > 0.5)),
        float(marked[~labels].mean()),
        float(marked[labels].mean()),
        len(rows),
        int(labels.sum()),
    )


def judge_report(judge: Judge, about: str, test: Sequence[Dialogue]) -> dict[str, Any]:
    """Quality per test set, over all labelled rows and over bots' replies without canned ones, as
    plain numbers for quality.json. `about` says what the judge is."""
    parts: dict[str, list[Dialogue]] = {}
    for source in dict.fromkeys(row.source for row in test):
        rows = [row for row in test if row.source == source and row.is_safe is not None]
        parts[f"{source}, all rows"] = rows
        if len(bots := scorable(rows)) < len(rows):
            parts[f"{source}, bot replies, no canned ones"] = bots
    return {
        "about": about,
        "threshold": judge.threshold,
        "quality": [
            {"rows_of": name, **quality(judge, rows)._asdict()} for name, rows in parts.items()
        ],
    }


def pairs_of(rows: Sequence[Dialogue]) -> list[Pair]:
    return [(row.history, row.reply) for row in rows]


def toxic_labels(rows: Sequence[Dialogue]) -> NDArray[np.bool_]:
    return np.array([row.is_safe is False for row in rows], dtype=bool)
