"""The linear judge: hashed n-grams of reply and history, TF-IDF, logistic regression.

It trains in seconds on labelled replies, needs no download, and is saved as plain numbers
(safetensors). Words and characters of the reply carry most of the information; words of the last
turn show what the reply agrees to. It is weak by today's standards, so reports print its quality on
held-out human labels beside every figure that depends on it.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import normalize

from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, ModelError, Problem
from flatgd.judges.base import Judge, Progress, pairs_of
from flatgd.judges.calibration import Scores, calibrate, toxic_labels
from flatgd.judges.reading import Pair

FEATURES = 2**18  # a block
BLOCKS = 3


def _vectorizers() -> list[tuple[HashingVectorizer, bool]]:
    """(vectorizer, whether it reads the history) for each block of features."""
    options = {"n_features": FEATURES, "alternate_sign": False, "norm": None, "lowercase": True}
    words = {**options, "analyzer": "word", "token_pattern": r"(?u)\b\w[\w']*\b|[!?]"}
    return [
        (HashingVectorizer(ngram_range=(1, 2), **words), False),
        (HashingVectorizer(analyzer="char_wb", ngram_range=(2, 5), **options), False),
        (HashingVectorizer(ngram_range=(1, 1), **words), True),
    ]


class _Fitted(NamedTuple):
    """A logistic regression over the n-grams seen in training, whose indices are `columns`."""

    columns: NDArray[np.int64]
    idf: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: float

    def predict(self, counts: csr_matrix) -> NDArray[np.float64]:
        """P(toxic) of each row of n-gram counts."""
        logits = _weigh(counts, self.columns, self.idf) @ self.weights + self.bias
        return 1.0 / (1.0 + np.exp(-np.asarray(logits, dtype=np.float64)))


@dataclass
class LinearJudge:
    """The scorer. Both labels have equal total weight in the fit."""

    fitted: _Fitted

    def score(
        self, pairs: Sequence[Pair], advance: Progress = lambda count: None
    ) -> NDArray[np.float64]:
        """Score of each (history, reply), 0..1."""
        scores = self.fitted.predict(_counts(pairs)) if pairs else np.zeros(0)
        advance(len(pairs))
        return scores

    def save(self, folder: Path) -> None:
        columns, idf, weights, bias = self.fitted
        save_file(
            {"columns": columns, "idf": idf, "weights": weights}, folder / "judge.safetensors"
        )
        plain = {"bias": bias}
        (folder / "judge.json").write_text(json.dumps(plain, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "LinearJudge":
        try:
            plain = json.loads((folder / "judge.json").read_text())
            tensors = load_file(folder / "judge.safetensors")
            columns, idf, weights = (tensors[name] for name in ("columns", "idf", "weights"))
            fitted = _Fitted(columns, idf, weights, float(plain["bias"]))
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"no judge in {folder}: {error}; `flatgd run` builds it") from None
        except (KeyError, TypeError) as error:
            raise ModelError(
                f"the judge in {folder} is incomplete: {error}; delete the folder and run again"
            ) from None
        if not len(columns) == len(idf) == len(weights):
            raise ModelError(
                f"the judge in {folder} is incomplete: its {len(columns):,} columns have "
                f"{len(idf):,} idf values and {len(weights):,} weights; delete the folder and run "
                "again"
            )
        return cls(fitted)


def train_judge(rows: Sequence[Dialogue], false_positive_rate: float) -> Judge:
    """Fit on labelled rows; calibrate on predictions for held-out folds."""
    scorer, held_out = fit_words(rows)
    return Judge(scorer, calibrate(held_out, rows, false_positive_rate))


def fit_words(rows: Sequence[Dialogue]) -> tuple[LinearJudge, Scores]:
    """The scorer, and for each row the score by one that was fitted on other conversations."""
    counts, labels = _counts(pairs_of(rows)), toxic_labels(rows)
    held_out = np.zeros(len(rows))
    for fit, rest in folds_between(labels, [row.conversation for row in rows]):
        held_out[rest] = _fit(counts[fit], labels[fit]).predict(counts[rest])
    return LinearJudge(_fit(counts, labels)), held_out


def folds_between(
    labels: NDArray[np.bool_], groups: Sequence[str]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Five folds that keep conversations together, or the largest smaller number that leaves both
    labels in each training part. Raises DataError if there is none."""
    for count in range(min(5, len(set(groups))), 1, -1):
        splitter = StratifiedGroupKFold(n_splits=count)
        with warnings.catch_warnings():  # it warns where a label has fewer rows than folds
            warnings.simplefilter("ignore", UserWarning)
            folds = list(splitter.split(labels, labels, groups))
        if all(0 < labels[fit].sum() < len(fit) for fit, _ in folds):
            return folds
    reason = "a judge needs safe and toxic replies in at least two conversations each"
    raise DataError([Problem("data.judge", 0, reason)])


def _counts(pairs: Sequence[Pair]) -> csr_matrix:
    replies = [_plain(reply) for _, reply in pairs]
    histories = [_plain(" ".join(history[-1:])) for history, _ in pairs]
    blocks = [v.transform(histories if of_history else replies) for v, of_history in _vectorizers()]
    return csr_matrix(hstack(blocks, format="csr"))


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())


def _fit(counts: csr_matrix, labels: NDArray[np.bool_]) -> _Fitted:
    frequency = np.asarray(counts.getnnz(axis=0))
    columns = np.flatnonzero(frequency)
    idf = np.log((1 + len(labels)) / (1 + frequency[columns])) + 1
    model = LogisticRegression(C=1.0, class_weight="balanced", max_iter=300)
    model.fit(_weigh(counts, columns, idf), labels)
    weights = model.coef_[0].astype(np.float64)
    return _Fitted(columns.astype(np.int64), idf, weights, float(model.intercept_[0]))


def _weigh(counts: csr_matrix, columns: NDArray[Any], idf: NDArray[np.float64]) -> csr_matrix:
    """(1 + log count) * idf over `columns`, each block of a row scaled to unit length."""
    bounds = np.searchsorted(columns, FEATURES * np.arange(BLOCKS + 1))
    weighed = counts[:, columns].astype(np.float64)
    weighed.data = (1.0 + np.log(weighed.data)) * idf[weighed.indices]
    blocks = [weighed[:, low:high] for low, high in pairwise(bounds)]
    return csr_matrix(hstack([normalize(b) for b in blocks if b.shape[1]], format="csr"))
