"""Safety, quality and cost of every system in one table a test set."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict, cast

from flatgd.artifacts import layout
from flatgd.artifacts.rows import EstimateRow
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.names import BACKBONE, EXPERTS
from flatgd.config.recipe import Recipe
from flatgd.report.cells import Table, cell, number
from flatgd.report.paper import trade_offs


class Costs(TypedDict, total=False):
    """What one model took; without a key, or None, where nothing was recorded. Seconds compute
    gradients; `needed_seconds` include everything the model depends on. `models`, MB and tokens a
    second are those of decoding."""

    seconds: float | None
    needed_seconds: float | None
    gradient_evaluations: float | None
    speed: float | None
    models: float | None
    weights_mb: float | None
    peak_mb: float | None


class Column(NamedTuple):
    """`key` is that of the summary or of Costs. `sign` is 1 where higher is better, -1 where lower
    is better, 0 where no model is best."""

    key: str
    head: str
    decimals: int
    sign: int


MEASURED = [
    Column("toxicity_any{k}", "toxic, any of {k} ↓", 3, -1),
    Column("toxicity_mean", "mean P(toxic) ↓", 3, -1),
    Column("contrast", "contrast ↑", 3, 1),
    Column("perplexity", "perplexity ↓", 1, -1),
    Column("div1", "div1 ↑", 3, 1),
    Column("div2", "div2 ↑", 3, 1),
]
COST = [
    Column("trade_off", "trade-off ↓", 4, -1),
    Column("seconds", "train s ↓", 0, -1),
    Column("needed_seconds", "with all it needs ↓", 0, -1),
    Column("gradient_evaluations", "gradients ↓", 0, -1),
    Column("speed", "tokens/s ↑", 0, 1),
    Column("models", "models ↓", 0, -1),
    Column("weights_mb", "weights, MB ↓", 0, -1),
    Column("peak_mb", "peak, MB", 0, 0),
]
COST_NOTE = (
    "Train s: seconds of gradients in its own training. With all it needs: also in training the "
    "experts and the model it starts from, and in sampling replies to learn from. Gradients: of "
    "whole batches, in its own training. Tokens/s, models and memory are of decoding on this "
    "machine; the peak is a lower bound, above earlier use. ●: best, ○: runner-up."
)
NOTE = (
    "Of the backbone and the compared systems. Trade-off: Eq. 5-6 of toxicity and perplexity over "
    "them, w = {weight:g}. " + COST_NOTE
)


def compare_tables(
    summary: Sequence[EstimateRow], recipe: Recipe, found: Mapping[str, Costs]
) -> list[Table]:
    """One table for each test set that the models answer, with the best model and the runner-up."""
    names, samples = recipe.models, recipe.generate.samples
    ranked = ["backbone", *recipe.methods]
    note = NOTE.format(weight=recipe.report.trade_off_weight)
    tables = []
    for part in trade_offs(summary, ranked, samples):
        factors = part.factors(recipe.report.trade_off_weight).get("perplexity")
        trade = dict(zip(ranked, factors or [], strict=False))
        own = [row for row in summary if row["dataset"] == part.dataset]
        cells = {(row["method"], row["metric"]): row for row in own}
        header, shown = ["system"], [[name] for name in names]
        for column in [*MEASURED, *COST]:
            known = {name: {"trade_off": trade.get(name), **found[name]} for name in names}
            texts = _column(column, samples, cells, known, ranked)
            if any(texts):
                header.append(column.head.format(k=samples))
                for row, text in zip(shown, texts, strict=True):
                    row.append(text)
        tables.append(Table(f"Compared on {part.dataset}", header, shown, note))
    return tables


def cost_table(found: Mapping[str, Costs]) -> Table:
    """What each model took, one row each, with the best and the runner-up of the methods."""
    names = list(found)
    header, shown = ["model"], [[name] for name in names]
    for column in COST[1:]:
        texts = _column(column, 0, {}, found, [name for name in names if name not in EXPERTS])
        if any(texts):
            header.append(column.head)
            for row, text in zip(shown, texts, strict=True):
                row.append(text)
    return Table("Cost", header, shown, COST_NOTE)


def _column(
    column: Column,
    samples: int,
    cells: Mapping[tuple[str, str], EstimateRow],
    costs: Mapping[str, Mapping[str, object]],
    ranked: Sequence[str],
) -> list[str]:
    """The text of each model; `costs` of the models give their order."""
    key = column.key.format(k=samples)
    texts: dict[str, str] = {}
    values: dict[str, float] = {}
    for name, own in costs.items():
        row = cells.get((name, key))
        value = cast(float | None, own.get(key)) if row is None else row["value"]
        if row is not None:
            texts[name] = cell(row, column.decimals)
        elif value is not None:
            texts[name] = number(value, column.decimals)
        if value is not None and name in ranked:
            values[name] = value
    dots = _dots(values, column)
    return [_with_dot(texts.get(name, ""), dots.get(name, "")) for name in costs]


def _dots(values: Mapping[str, float], column: Column) -> dict[str, str]:
    """● for the best and ○ for the runner-up of the values as shown; none where all are equal."""
    rounded = {name: round(column.sign * v, column.decimals) for name, v in values.items()}
    order = sorted(set(rounded.values()), reverse=True)
    if len(order) < 2 or not column.sign:
        return {}
    return {
        name: dot
        for name, value in rounded.items()
        for shown, dot in zip(order, "●○", strict=False)
        if value == shown
    }


def _with_dot(text: str, dot: str) -> str:
    """The dot behind the value, before its interval."""
    value, bracket, rest = text.partition(" [")
    return f"{value} {dot}{bracket}{rest}" if dot else text


def costs(recipe: Recipe) -> dict[str, Costs]:
    """What each model took, from the run's manifests."""
    store = ArtifactStore(recipe.output)
    found: dict[str, Costs] = {}
    for name in recipe.models:
        decoding = store.cost(layout.generations(name))
        row: Costs = {
            "models": decoding.get("models"),
            "weights_mb": decoding.get("weights_mb"),
            "peak_mb": decoding.get("peak_mb"),
        }
        if decoding.get("seconds"):
            row["speed"] = decoding["tokens"] / decoding["seconds"]
        if name != BACKBONE:
            trained = layout.model(name)
            own = store.cost(trained)
            row["seconds"] = own.get("seconds", 0.0)
            row["gradient_evaluations"] = own.get("gradient_evaluations", 0.0)
            once = {store.fingerprint(artifact): artifact for artifact in store.needed_by(trained)}
            row["needed_seconds"] = sum(
                store.cost(artifact).get("seconds") or 0.0 for artifact in once.values()
            )
        found[name] = row
    return found
