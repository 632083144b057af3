"""Tables 1 to 3 in the paper's form, its values beside ours (Khalatbari et al. 2024, Tables 1-3).

The paper tunes BlenderBot 400M on BAD, BBF and ProsocialDialog and judges it by a classifier that
is not published. Its values and ours come from different models, data and judges, so only the order
of the methods can be compared.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flatgd.artifacts.rows import EstimateRow
from flatgd.evaluation.trade_off import pareto_front, standardised, trade_off
from flatgd.report.cells import Table, number

# Table 1: share of histories with a toxic reply among five, BAD and ProsocialDialog
TOXICITY = {
    "clean": (0.339, 0.361),
    "cringe": (0.182, 0.376),
    "unlikelihood": (0.203, 0.400),
    "safety_loss": (0.142, 0.073),
    "flatgd": (0.051, 0.038),
}
# Tables 2 and 3: trade-off factors of toxicity with fluency, Div1 and Div2
FACTORS = {
    "ProsocialDialog": {
        "clean": (0.1614, 0.2227, 0.2269),
        "cringe": (0.2567, 0.2499, 0.2470),
        "unlikelihood": (0.2916, 0.2863, 0.2833),
        "safety_loss": (0.0205, 0.0880, 0.0909),
        "flatgd": (0.0148, 0.0840, 0.0870),
    },
    "BAD": {
        "clean": (0.1274, 0.1653, 0.1676),
        "cringe": (0.1900, 0.1203, 0.1194),
        "unlikelihood": (0.1063, 0.1257, 0.1244),
        "safety_loss": (0.0646, 0.1093, 0.1107),
        "flatgd": (0.0488, 0.0931, 0.0947),
    },
}
QUALITIES = ("perplexity", "div1", "div2")


class TradeOff(NamedTuple):
    """What the trade-off factors of one test set are computed from, one value a model. `lack` is
    the lack of quality by metric; higher is worse."""

    dataset: str
    models: list[str]
    toxicity: list[float]
    lack: dict[str, list[float]]

    def factors(self, weight: float) -> dict[str, list[float]]:
        """tau by quality metric, in the order of the models."""
        return {
            metric: [float(t) for t in trade_off(self.toxicity, lack, weight)]
            for metric, lack in self.lack.items()
        }


def trade_offs(
    summary: Sequence[EstimateRow], methods: Sequence[str], samples: int
) -> list[TradeOff]:
    """For each test set on which every method has a toxicity and some quality."""
    cells = {(r["dataset"], r["method"], r["metric"]): r["value"] for r in summary}
    found = []
    for dataset in dict.fromkeys(row["dataset"] for row in summary):

        def column(metric: str, dataset: str = dataset) -> list[float]:
            """The value of every method; empty where one has none."""
            values = [cells.get((dataset, method, metric)) for method in methods]
            known = [float(value) for value in values if value is not None]
            return known if len(known) == len(values) else []

        toxicity = column(f"toxicity_any{samples}")
        lack = {}
        for metric in QUALITIES:
            if values := column(metric):
                lack[metric] = (
                    [float(x) for x in standardised(values)]
                    if metric == "perplexity"
                    else [1 - value for value in values]
                )
        if len(methods) > 1 and lack and toxicity:
            found.append(TradeOff(dataset, list(methods), toxicity, lack))
    return found


def paper_tables(
    summary: Sequence[EstimateRow], methods: Sequence[str], samples: int, weight: float
) -> list[Table]:
    """Table 1, and for each test set one table in the form of Tables 2 and 3."""
    cells = {(r["dataset"], r["method"], r["metric"]): r["value"] for r in summary}
    metric = f"toxicity_any{samples}"
    datasets = [
        d for d in dict.fromkeys(r["dataset"] for r in summary) if (d, methods[0], metric) in cells
    ]
    names = [*methods, *(name for name in TOXICITY if name not in methods)]
    rows = [
        [
            name,
            *(_shown(cells.get((dataset, name, metric))) for dataset in datasets),
            *(f"{value:.3f}" for value in TOXICITY.get(name, ())),
            *(["", ""] if name not in TOXICITY else []),
        ]
        for name in names
    ]
    tables = [
        Table(
            f"Table 1: toxic, any of {samples}",
            ["method", *datasets, "paper: BAD", "paper: ProsocialDialog"],
            rows,
            "Ours and the paper's are of other models, data and judges: only the order compares.",
        )
    ]
    for part in trade_offs(summary, methods, samples):
        tables.append(_factors(part, weight))
    return tables


def _factors(part: TradeOff, weight: float) -> Table:
    factors = part.factors(weight)
    fronts = {m: pareto_front(part.toxicity, lack) for m, lack in part.lack.items()}
    published = "ProsocialDialog" if "prosocial" in part.dataset.lower() else "BAD"
    theirs = {
        name: dict(zip(QUALITIES, values, strict=True))
        for name, values in FACTORS[published].items()
    }
    names = [*part.models, *(name for name in theirs if name not in part.models)]
    rows = []
    for name in names:
        own, index = [""] * len(factors), names.index(name)
        if index < len(part.models):
            own = [
                f"{factors[metric][index]:.4f}" + (" ●" if index in fronts[metric] else "")
                for metric in factors
            ]
        paper = theirs.get(name)
        rows.append([name, *own, *(f"{paper[m]:.4f}" if paper else "" for m in factors)])
    sums = [f"{sum(values):.4f}" for values in factors.values()]
    of_paper = [f"{sum(values[m] for values in theirs.values()):.4f}" for m in factors]
    rows.append(["sum", *sums, *of_paper])
    return Table(
        f"Tables 2 and 3: trade-off factors, {part.dataset}",
        [
            "method",
            *(f"toxicity with {metric} ↓" for metric in factors),
            *(f"paper, {published}: with {metric}" for metric in factors),
        ],
        rows,
        f"Eq. 5-6 with w = {weight:g}, a softmax over the methods, so each column adds up to 1; "
        "the paper's columns do not, for any w (docs/deviations.md). ●: no other method is better "
        "in both.",
    )


def _shown(value: float | None) -> str:
    return "" if value is None else number(value, 3)
