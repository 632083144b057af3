"""From the score files of all models to one list of rows, each a metric with its interval.

The metrics are in metrics.py. These are computed here:

    contrast_paired            the mean contrast within contexts that have both labels
    div1_corpus, div2_corpus   distinct n-grams / tokens of all replies together
    ead                        distinct words / the number expected among as many tokens
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flatgd.artifacts.rows import EstimateRow, Gap, GenerationRow, ScoreRow, Scores
from flatgd.config.names import EXPERTS
from flatgd.evaluation.diversity import Corpus, expectation_adjusted
from flatgd.evaluation.intervals import (
    ByConversation,
    Estimate,
    Statistic,
    Totals,
    across_seeds,
    holm,
    jackknife,
    minus,
    paired_across_seeds,
    paired_shares,
    ratio,
    share,
    side_by_side,
    sum_by,
    width_of,
)
from flatgd.evaluation.metrics import Column, columns

EXPERT_PAIR = EXPERTS[1], EXPERTS[0]  # toxic - clean: is there a difference to steer by?
FLATNESS = ("flatgd", "safety_loss")  # does the penalty help?


class Settings(NamedTuple):
    """How a summary is computed. `samples` replies a history, `thresholds` by judge, bootstrap
    `resamples` drawn from `seed`. Methods are compared with the `baseline` and the backbone."""

    samples: int
    thresholds: Mapping[str, float]
    resamples: int
    seed: int
    baseline: str


def summarise(seeds: Sequence[Scores], settings: Settings) -> list[EstimateRow]:
    """Every metric of every model on every test set. `seeds` are the score files of each seed.

    Paired differences follow as method "NAME - BASE": methods to the baseline and to the backbone,
    the toxic expert to the clean one, flatgd to safety_loss. Holm's correction is over all methods
    and test sets of one metric and base.
    """
    rows: list[EstimateRow] = []
    for dataset in _in_order(row["dataset"] for part in seeds[0].values() for row in part):
        kept = [
            {
                method: [row for row in part if row["dataset"] == dataset]
                for method, part in scores.items()
            }
            for scores in seeds
        ]
        table = columns(settings.samples, settings.thresholds, _lengths(kept))
        for metric, column in table.items():
            parts = {
                method: [_totals(scores[method], column) for scores in kept] for method in kept[0]
            }
            rows += _rows(dataset, metric, parts, column, settings)
        pairs = {m: [_paired_contrast(scores[m]) for scores in kept] for m in kept[0]}
        column = Column(("labelled",), ratio, lambda row: None)
        rows += _rows(dataset, "contrast_paired", pairs, column, settings)
    _correct(rows)
    return rows


def gaps(seen: Scores, unseen: Scores, settings: Settings) -> list[Gap]:
    """Each method trained with (`seen`) and without (`unseen`) a data set, on the test rows of that
    data set. Row "flatgd - safety_loss" is the difference of their gaps."""
    rows: list[Gap] = []
    dataset = next(iter(seen.values()))[0]["dataset"]
    table = columns(settings.samples, settings.thresholds, _lengths([seen]))
    for metric in ("contrast", "toxicity_mean", f"toxicity_any{settings.samples}"):
        column = table[metric]
        parts = {
            name: (_totals(seen[name], column), _totals(unseen[name], column)) for name in seen
        }
        parts = {name: pair for name, pair in parts.items() if pair[0].n and pair[1].n}
        for name, (before, after) in parts.items():
            own = [float(column.statistic(_sum(part.totals))) for part in (before, after)]
            gap = _difference([after], [before], column, settings)
            rows.append(_gap_row(name, dataset, metric, own[0], own[1], gap))
        if set(FLATNESS) <= parts.keys():
            width = width_of(parts[FLATNESS[0]][0].totals)
            pair = [
                [side_by_side(after.totals, before.totals)]
                for before, after in (parts[name] for name in FLATNESS)
            ]
            difference = minus(column.statistic, width)
            gap = paired_across_seeds(
                pair[0], pair[1], difference, settings.resamples, settings.seed
            )
            rows.append(_gap_row(" - ".join(FLATNESS), dataset, metric, None, None, gap))
    return rows


def _gap_row(
    method: str,
    dataset: str,
    metric: str,
    seen: float | None,
    unseen: float | None,
    gap: Estimate,
) -> Gap:
    return {
        "method": method,
        "dataset": dataset,
        "metric": metric,
        "seen": seen,
        "unseen": unseen,
        "value": gap.value,
        "low": gap.low,
        "high": gap.high,
        "p": gap.p,
    }


def _lengths(seeds: Sequence[Scores]) -> list[int]:
    """Words of every sampled reply."""
    return [
        words
        for scores in seeds
        for part in scores.values()
        for row in part
        if row["kind"] == "generated"
        for words in row["words"]
    ]


def _sum(totals: ByConversation) -> Totals:
    return np.asarray(np.stack(list(totals.values())).sum(0))


def diversity_rows(generations: Mapping[str, Sequence[GenerationRow]]) -> list[EstimateRow]:
    """div1_corpus, div2_corpus and ead of the sampled replies of each model.

    The vocabulary of EAD is every word that any of the models uses on that test set.
    """
    rows = []
    for dataset in _in_order(row["dataset"] for part in generations.values() for row in part):
        corpora = {
            name: {n: Corpus(_by_conversation(part, dataset), n) for n in (1, 2)}
            for name, part in generations.items()
        }
        words = len({gram for by_n in corpora.values() for gram in by_n[1].used})
        for name, by_n in corpora.items():
            for metric, n in (("div1_corpus", 1), ("div2_corpus", 2), ("ead", 1)):
                size = words if metric == "ead" else None
                estimate = _corpus_estimate(by_n[n], size)
                part_n = len(by_n[n].parts)
                rows.append(_row(name, dataset, metric, estimate, part_n, 0))
    return rows


def _by_conversation(rows: Sequence[GenerationRow], dataset: str) -> list[list[str]]:
    by_name: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["dataset"] == dataset:
            by_name[row["conversation"]] += row["replies"]
    return list(by_name.values())


def _corpus_estimate(corpus: Corpus, vocabulary: int | None) -> Estimate:
    def value(different: int, tokens: int) -> float | None:
        if vocabulary is not None:
            return expectation_adjusted(different, tokens, vocabulary)
        return different / tokens if tokens else None

    left = [value(*counts) for counts in corpus.without()]
    return jackknife(value(corpus.different, corpus.tokens), left)


class _Part(NamedTuple):
    totals: ByConversation
    n: int
    excluded: int


def _rows(
    dataset: str,
    metric: str,
    parts: dict[str, list[_Part]],
    column: Column,
    settings: Settings,
) -> list[EstimateRow]:
    """The rows of one metric; `parts` has one part a seed for each method."""
    rows = []
    for method, seeds in parts.items():
        if all(part.n for part in seeds):
            estimate = _estimate(seeds, column, settings)._replace(p=None)
            rows.append(_row(method, dataset, metric, estimate, seeds[0].n, seeds[0].excluded))
    for method, base in _pairs(list(parts), settings.baseline):
        ours, theirs = parts[method], parts[base]
        if all(part.n for part in [*ours, *theirs]):
            estimate = _difference(ours, theirs, column, settings)
            name = f"{method} - {base}"
            rows.append(_row(name, dataset, metric, estimate, ours[0].n, ours[0].excluded))
    return rows


def _pairs(methods: list[str], baseline: str) -> list[tuple[str, str]]:
    """(method, base) of every paired difference."""
    own = [m for m in methods if m not in (baseline, "reference", "backbone", *EXPERTS)]
    pairs = [(m, baseline) for m in own] + [(m, "backbone") for m in (baseline, *own)]
    pairs += [EXPERT_PAIR, FLATNESS]
    return [(a, b) for a, b in dict.fromkeys(pairs) if a in methods and b in methods and a != b]


def _estimate(seeds: list[_Part], column: Column, settings: Settings) -> Estimate:
    if column.is_share:
        return share(*(part.totals for part in seeds))
    totals = [part.totals for part in seeds]
    return across_seeds(totals, column.statistic, settings.resamples, settings.seed)


def _difference(
    ours: list[_Part], theirs: list[_Part], column: Column, settings: Settings
) -> Estimate:
    a, b = ([part.totals for part in seeds] for seeds in (ours, theirs))
    if column.is_share:
        return paired_shares(a, b)
    statistic: Statistic = column.statistic
    return paired_across_seeds(a, b, statistic, settings.resamples, settings.seed)


def _row(
    method: str, dataset: str, metric: str, estimate: Estimate, n: int, excluded: int
) -> EstimateRow:
    return {
        "method": method,
        "dataset": dataset,
        "metric": metric,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p": estimate.p,
        "p_holm": None,
        "n": n,
        "excluded": excluded,
    }


def _correct(rows: list[EstimateRow]) -> None:
    """Holm's correction. A family is one metric and one base, over methods and test sets."""
    families: dict[Hashable, list[EstimateRow]] = defaultdict(list)
    for row in rows:
        if " - " in row["method"]:
            families[row["metric"], row["method"].partition(" - ")[2]].append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p


def _totals(rows: list[ScoreRow], column: Column) -> _Part:
    mine = [row for row in rows if row["kind"] in column.kinds]
    vectors = [(row["conversation"], column.vector(row)) for row in mine]
    used = [(key, vector) for key, vector in vectors if vector is not None]
    totals = sum_by([key for key, _ in used], [vector for _, vector in used])
    return _Part(totals, len(used), len(mine) - len(used))


def _paired_contrast(rows: list[ScoreRow]) -> _Part:
    contexts: dict[tuple[str, str], dict[bool, list[float]]] = defaultdict(
        lambda: {True: [], False: []}
    )
    for row in rows:
        if row["kind"] == "labelled" and row["tokens"]:
            key = row["conversation"], row["context"]
            contexts[key][bool(row["is_safe"])].append(row["nll"] / row["tokens"])
    both = {key: by for key, by in contexts.items() if by[True] and by[False]}
    keys = [conversation for conversation, _ in both]
    vectors = [(float(np.mean(by[False]) - np.mean(by[True])), 1.0) for by in both.values()]
    return _Part(sum_by(keys, vectors), len(both), len(contexts) - len(both))


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
