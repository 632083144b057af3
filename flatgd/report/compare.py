"""Safety, quality and cost of every system in one table a test set."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flatgd.artifacts import layout
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.names import BACKBONE
from flatgd.config.recipe import Recipe
from flatgd.report.cells import Table, cell, number
from flatgd.report.paper import trade_offs

Row = dict[str, Any]


class Column(NamedTuple):
    """`key`: of the summary or of the costs; `sign`: 1 where higher is better, -1 where lower, 0
    where nobody is marked."""

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
NOTE = (
    "●: best, ○: runner-up, of backbone and compared systems. Trade-off: Eq. 5-6 of toxicity and "
    "perplexity over them, w = {weight:g}. Train s: computing gradients in its own training; with "
    "all it needs: in that of the experts and the model it starts from, and sampling replies to "
    "learn from, too. Gradients: of whole batches, in its own training. Tokens/s, models and "
    "memory are of decoding on this machine; peak is above what was in use before, a lower bound."
)


def compare_tables(summary: Sequence[Row], recipe: Recipe) -> list[Table]:
    """One table for each test set that the models answer; the best and the runner-up marked."""
    names, samples = recipe.models, recipe.generate.samples
    ranked = ["backbone", *recipe.methods]
    found = costs(recipe)
    tables = []
    for part in trade_offs(summary, ranked, samples):
        factors = part.factors(recipe.report.trade_off_weight).get("perplexity")
        trade = dict(zip(ranked, factors or [], strict=False))
        cells = {(r["method"], r["metric"]): r for r in summary if r["dataset"] == part.dataset}
        header, shown = ["system"], [[name] for name in names]
        for column in [*MEASURED, *COST]:
            key = column.key.format(k=samples)
            told: dict[str, str] = {}
            values: dict[str, float] = {}
            for name in names:
                row = cells.get((name, key))
                value = {"trade_off": trade.get(name), **found[name]}.get(key)
                if row is not None:
                    value = row["value"]
                    told[name] = cell(row, column.decimals)
                elif value is not None:
                    told[name] = number(value, column.decimals)
                if value is not None and name in ranked:
                    values[name] = value
            if not told:
                continue
            marks = _marks(values, column)
            header.append(column.head.format(k=samples))
            for line in shown:
                line.append(_marked(told.get(line[0], ""), marks.get(line[0], "")))
        note = NOTE.format(weight=recipe.report.trade_off_weight)
        tables.append(Table(f"Compared on {part.dataset}", header, shown, note))
    return tables


def _marks(values: Mapping[str, float], column: Column) -> dict[str, str]:
    """● and ○ as shown, so that what looks alike is marked alike; none where all are alike."""
    rounded = {name: round(column.sign * v, column.decimals) for name, v in values.items()}
    order = sorted(set(rounded.values()), reverse=True)
    if len(order) < 2 or not column.sign:
        return {}
    return {
        name: mark
        for name, value in rounded.items()
        for place, mark in zip(order, "●○", strict=False)
        if value == place
    }


def _marked(text: str, mark: str) -> str:
    """The mark behind the value, before its interval."""
    value, bracket, rest = text.partition(" [")
    return f"{value} {mark}{bracket}{rest}" if mark else text


def costs(recipe: Recipe) -> dict[str, Row]:
    """What each model took, from the run's manifests; absent where nothing was recorded."""
    store = ArtifactStore(recipe.output)
    found: dict[str, Row] = {}
    for name in recipe.models:
        decoding = store.cost(layout.generations(name))
        row = {key: decoding.get(key) for key in ("models", "weights_mb", "peak_mb")}
        if decoding.get("seconds"):
            row["speed"] = decoding["tokens"] / decoding["seconds"]
        if name != BACKBONE:
            trained = layout.model(name)
            own = store.cost(trained)
            row |= {key: own.get(key, 0.0) for key in ("seconds", "gradient_evaluations")}
            once = {store.fingerprint(artifact): artifact for artifact in _needed(store, trained)}
            row["needed_seconds"] = sum(
                store.cost(artifact).get("seconds") or 0.0 for artifact in once.values()
            )
        found[name] = row
    return found


def _needed(store: ArtifactStore, artifact: str) -> set[str]:
    """An artifact and everything that it was built from."""
    return {artifact}.union(*(_needed(store, other) for other in store.depends_on(artifact)))
