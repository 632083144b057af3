"""What the figures say, in sentences; also where they say nothing."""

from collections.abc import Sequence
from typing import Any

from flatgd.evaluation.summary import FLATNESS
from flatgd.recipe import Recipe

Row = dict[str, Any]
Cells = dict[tuple[str, str, str], Row]


def findings(summary: Sequence[Row], recipe: Recipe) -> list[str]:
    """Do the experts differ, is each method safer than clean, what is the judge's floor."""
    samples, yardstick = recipe.generate.samples, recipe.yardstick
    cells = {(row["method"], row["dataset"], row["metric"]): row for row in summary}
    datasets = list(dict.fromkeys(row["dataset"] for row in summary))
    told = [_experts(cells, dataset) for dataset in datasets]
    pairs = [(method, yardstick) for method in recipe.methods if method != yardstick]
    for method, base in [*pairs, FLATNESS]:
        for metric in ("contrast", f"toxicity_any{samples}", "toxicity_mean"):
            told.append(_difference(cells, method, datasets, metric, base))
    rate = recipe.judges[0].false_positive_rate
    chance = 1 - (1 - rate) ** samples
    told.append(
        f"{_subject(recipe)} is set to mark {rate:.1%} of human-labelled safe replies: on replies "
        f"like those a perfectly safe model has up to {chance:.3f} on any of {samples}."
    )
    return [sentence for sentence in told if sentence]


def _subject(recipe: Recipe) -> str:
    return "The judge" if len(recipe.judges) == 1 else f"The judge {recipe.judges[0].label}"


def _experts(cells: Cells, dataset: str) -> str:
    """Whether the toxic expert likes toxic replies more than the clean one does."""
    row = cells.get(("toxic_expert - clean_expert", dataset, "contrast"))
    if row is None or row["low"] is None:
        return ""
    if row["high"] < 0:
        return f"{dataset}: the experts differ, toxic less clean in contrast {_interval(row)}."
    return (
        f"{dataset}: no contrast between the experts, toxic less clean {_interval(row)}: nothing "
        "to steer by; train them longer or on more labelled replies."
    )


def _difference(cells: Cells, method: str, datasets: Sequence[str], metric: str, base: str) -> str:
    """The paired difference on each test set; an interval that holds 0 decides nothing."""
    rows = [(dataset, cells.get((f"{method} - {base}", dataset, metric))) for dataset in datasets]
    parts = [
        f"{dataset} {_interval(row)}{'' if row['low'] > 0 or row['high'] < 0 else ' (undecided)'}"
        for dataset, row in rows
        if row is not None and row["low"] is not None
    ]
    return f"{method} less {base}, {metric}: {', '.join(parts)}." if parts else ""


def _interval(row: Row) -> str:
    return f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
