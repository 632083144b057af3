"""Forest plots of a summary: paired differences by metric, and the values of every model."""

from collections.abc import Mapping, Sequence

from flatgd.config.names import REFERENCE
from flatgd.config.recipe import Recipe
from flatgd.evaluation.summary import FLATNESS
from flatgd.report.blocks import Forest, ForestRow
from flatgd.report.charts import Mark
from flatgd.report.findings import LOWER_IS_BETTER, Cells, measured
from flatgd.report.metrics import QUALITY, SAFETY, Metric


def safety_forests(
    cells: Cells, recipe: Recipe, named: Mapping[str, Mark]
) -> tuple[list[Forest], list[Forest]]:
    """Differences in safety, and the values."""
    return _forests(cells, recipe, named, SAFETY, None)


def quality_forests(
    cells: Cells, recipe: Recipe, named: Mapping[str, Mark]
) -> tuple[list[Forest], list[Forest]]:
    """Differences in quality with the margin of non-inferiority, and the values."""
    return _forests(cells, recipe, named, QUALITY, recipe.report.non_inferiority)


def _forests(
    cells: Cells,
    recipe: Recipe,
    named: Mapping[str, Mark],
    metrics: Sequence[Metric],
    non_inferiority: float | None,
) -> tuple[list[Forest], list[Forest]]:
    differences, values = [], []
    for dataset in dict.fromkeys(dataset for _, dataset, _ in cells):
        for metric in (one.of(recipe.generate.samples) for one in metrics):
            title = f"{dataset}: {metric.words}"
            if rows := _differences(cells, recipe, named, dataset, metric.name):
                differences.append(
                    Forest(
                        dataset,
                        title,
                        rows,
                        metric.decimals,
                        metric.is_lower_better,
                        True,
                        _margin(cells, recipe, dataset, metric, non_inferiority),
                    )
                )
            if rows := _values(cells, recipe, named, dataset, metric.name):
                values.append(
                    Forest(dataset, title, rows, metric.decimals, metric.is_lower_better, False)
                )
    return differences, values


def _differences(
    cells: Cells, recipe: Recipe, named: Mapping[str, Mark], dataset: str, metric: str
) -> list[ForestRow]:
    """Each method minus the baseline, and flatgd minus safety_loss."""
    base = recipe.baseline
    pairs = [(method, base) for method in recipe.methods if method != base]
    if FLATNESS[1] != base and set(FLATNESS) <= recipe.methods.keys():
        pairs.append(FLATNESS)
    rows = []
    for method, other in pairs:
        if found := measured(cells, (method, other), dataset, metric):
            rows.append(
                ForestRow(
                    f"{method} − {other}",
                    named[method],
                    found.value,
                    found.low,
                    found.high,
                    found.is_decided,
                )
            )
    return rows


def _values(
    cells: Cells, recipe: Recipe, named: Mapping[str, Mark], dataset: str, metric: str
) -> list[ForestRow]:
    rows = []
    for name in (*recipe.models, REFERENCE):
        row = cells.get((name, dataset, metric))
        if row is None or row["value"] is None or row["low"] is None or row["high"] is None:
            continue
        rows.append(ForestRow(name, named[name], row["value"], row["low"], row["high"]))
    return rows


def _margin(
    cells: Cells, recipe: Recipe, dataset: str, metric: Metric, non_inferiority: float | None
) -> float | None:
    """What a method may lose of the baseline's value; None where nothing is set."""
    own = cells.get((recipe.baseline, dataset, metric.name))
    if non_inferiority is None or metric.name not in LOWER_IS_BETTER:
        return None
    return non_inferiority * abs(own["value"]) if own and own["value"] is not None else None
