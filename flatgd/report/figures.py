"""The figures of a run: safety against quality, training, trade-offs, judges."""

from collections.abc import Mapping, Sequence

from flatgd.artifacts.rows import EstimateRow, JudgeReport
from flatgd.config.names import BACKBONE, REFERENCE
from flatgd.config.recipe import Recipe
from flatgd.evaluation.metrics import ks
from flatgd.evaluation.trade_off import pareto_front
from flatgd.report.blocks import Figure, Panel
from flatgd.report.cells import Table, number, significant
from flatgd.report.charts import COLOURS, Line, Mark, Spot, key, legend, panel, plane
from flatgd.report.findings import Cells
from flatgd.report.paper import TradeOff

WIDE, NARROW = (600, 440), (346, 350)  # the main figure on a desk and on a phone
CURVES = [
    ("lm", "L_LM, nats per token"),
    ("js_clean", "JS to the clean expert, bits"),
    ("js_toxic", "JS to the toxic expert, bits"),
    ("safety_grad_norm", "‖grad L_S‖"),
]
LACK = {"perplexity": "perplexity, standardised", "div1": "1 − div1", "div2": "1 − div2"}
WEIGHTS = [n / 20 for n in range(21)]
MOST_POINTS = 120  # of a curve; more cannot be seen


def main_figure(
    cells: Cells, recipe: Recipe, named: Mapping[str, Mark], dataset: str
) -> Figure | None:
    """Safety against quality: P(toxic) and perplexity, or diversity without a scorer."""
    quality = "perplexity" if (BACKBONE, dataset, "perplexity") in cells else "div1"
    y_label = {
        "perplexity": "perplexity, log scale (lower is more fluent)",
        "div1": "div1 (higher is more varied)",
    }[quality]
    spots = []
    for name in (BACKBONE, *recipe.methods, REFERENCE):
        pair = [_triple(cells.get((name, dataset, m))) for m in ("toxicity_mean", quality)]
        if pair[0] is not None and pair[1] is not None:
            label = "human replies" if name == REFERENCE else name
            spots.append(Spot(label, named[name], pair[0], pair[1]))
    if len(spots) < 2:
        return None
    title = f'Safety against quality on test set "{dataset}"'
    x_label = "mean P(toxic) of a reply, by the judge (lower is safer)"
    is_log = quality == "perplexity"
    panels = [
        Panel(f"main_{size}", title, plane(title, spots, x_label, y_label, at, is_log))
        for size, at in (("wide", WIDE), ("narrow", NARROW))
    ]
    table = Table(
        title,
        ["model", "mean P(toxic)", quality],
        [[s.label, _shown(s.x), _shown(s.y)] for s in spots],
        "",
    )
    note = (
        "The mean over all replies; the sentences count conversations. Human replies are those of "
        "the test set."
    )
    shown = [(key(spot.mark), spot.label) for spot in spots] if len(spots) > 6 else []
    return Figure(title, panels, shown, table, note)


def _triple(row: EstimateRow | None) -> tuple[float, float, float] | None:
    """The value and its interval; of too few conversations, the value alone."""
    if row is None or row["value"] is None:
        return None
    value, low, high = row["value"], row["low"], row["high"]
    return (value, value, value) if low is None or high is None else (value, low, high)


def _shown(triple: Sequence[float]) -> str:
    value, low, high = (significant(v) for v in triple)
    return f"{value} [{low}, {high}]"


def training_figure(
    logs: Mapping[str, Sequence[Mapping[str, float]]], named: Mapping[str, Mark]
) -> Figure | None:
    """The parts of the objective step by step, smoothed."""
    if not any("js_clean" in row for log in logs.values() for row in log):
        return None
    panels, ends = [], []
    for figure, label in CURVES:
        lines = []
        for name, log in logs.items():
            points = [(row["step"], row[figure]) for row in log if figure in row]
            if points:
                smooth = _smooth([value for _, value in points])
                curve = [(x, y) for (x, _), y in zip(points, smooth, strict=True)]
                lines.append(Line(name, named[name], thinned(curve)))
                ends.append([name, label, number(smooth[0], 4), number(smooth[-1], 4)])
        if lines:
            panels.append(Panel(f"training_{figure}", label, panel(label, lines, "step")))
    table = Table("Training", ["model", "curve", "first step", "last step"], ends, "")
    return Figure("Step by step, smoothed", panels, legend(named, list(logs)), table)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS of them, the last one kept."""
    every = -(-len(points) // MOST_POINTS)
    kept = list(points[::every])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def toxicity_at_k_figure(
    cells: Cells, names: Sequence[str], samples: int, named: Mapping[str, Mark]
) -> Figure | None:
    """Share of conversations with a toxic reply among k, by k."""
    datasets = [
        d
        for d in dict.fromkeys(dataset for _, dataset, _ in cells)
        if (names[0], d, f"toxicity_any{samples}") in cells
    ]
    if not datasets or samples < 2:
        return None
    panels, rows = [], []
    for n, dataset in enumerate(datasets):
        lines = []
        for name in names:
            found = [(k, cells.get((name, dataset, f"toxicity_any{k}"))) for k in ks(samples)]
            points = [(float(k), r["value"]) for k, r in found if r and r["value"] is not None]
            if points:
                lines.append(Line(name, named[name], points))
                rows.append([name, dataset, *(number(y, 3) for _, y in points)])
        title = f"{dataset}: toxic among k replies"
        svg = panel(title, lines, "k", x_ticks=[float(k) for k in ks(samples)])
        panels.append(Panel(f"toxicity_at_k_{n}", title, svg))
    header = ["model", "test set", *(f"k = {k}" for k in ks(samples))]
    table = Table("Toxic by number of replies", header, rows, "")
    return Figure("Toxic by number of replies", panels, legend(named, names), table)


def trade_off_figures(part: TradeOff, named: Mapping[str, Mark]) -> list[Figure]:
    """Toxicity against lack of quality with its Pareto front; the trade-off factor by weight."""
    planes, sweeps, rows = [], [], []
    by_weight = [part.factors(weight) for weight in WEIGHTS]
    for metric, lack in part.lack.items():
        front = sorted(pareto_front(part.toxicity, lack), key=lambda i: part.toxicity[i])
        edge = [(part.toxicity[i], lack[i]) for i in front]
        own = [
            Line(name, named[name], [(x, y)])
            for name, x, y in zip(part.models, part.toxicity, lack, strict=True)
        ]
        label = LACK[metric]
        lines = [Line("Pareto front", Mark("soft", ""), edge, "4 3"), *own]
        svg = panel(label, lines, "toxic, any of the replies")
        planes.append(Panel(f"trade_off_{part.dataset}_{metric}", label, svg))
        curves = []
        for n, name in enumerate(part.models):
            taus = [factors[metric][n] for factors in by_weight]
            mark = named[name]._replace(shape="")
            curves.append(Line(name, mark, list(zip(WEIGHTS, taus, strict=True))))
        label = f"tau with {metric} (lower is better)"
        svg = panel(label, curves, "w, the weight of toxicity")
        sweeps.append(Panel(f"sweep_{part.dataset}_{metric}", label, svg))
        rows += [
            [name, metric, number(x, 3), number(y, 3)]
            for name, x, y in zip(part.models, part.toxicity, lack, strict=True)
        ]
    title = f"{part.dataset}: safety against quality with the Pareto front"
    table = Table(title, ["model", "quality", "toxic", "lack of quality"], rows, "")
    weights = Table(
        f"{part.dataset}: trade-off factor by weight",
        ["model", "quality", *(f"w = {w:g}" for w in WEIGHTS[::5])],
        [
            [name, metric, *(number(f[metric][n], 4) for f in by_weight[::5])]
            for metric in part.lack
            for n, name in enumerate(part.models)
        ],
        "",
    )
    shown = legend(named, part.models)
    return [Figure(title, planes, shown, table), Figure(weights.title, sweeps, shown, weights)]


def reliability_figure(judges: Sequence[JudgeReport]) -> Figure:
    """P(toxic) of each judge against the share of replies labelled toxic, in ten equal bins."""
    named = {judge["name"]: Mark(f"c{n % COLOURS}", "circle") for n, judge in enumerate(judges)}
    lines, rows = [], []
    for judge in judges:
        points = [(part["said"], part["true"]) for part in judge["reliability"]]
        lines.append(Line(judge["name"], named[judge["name"]], points))
        rows += [[judge["name"], number(x, 3), number(y, 3)] for x, y in points]
    title = "P(toxic) against the share that people call toxic"
    svg = panel(title, lines, "P(toxic) by the judge", diagonal=True)
    table = Table(title, ["judge", "P(toxic)", "share of toxic replies"], rows, "")
    note = "A judge on the dashed line is calibrated."
    panels = [Panel("reliability", title, svg)]
    return Figure(title, panels, legend(named, list(named)), table, note)


def _smooth(values: Sequence[float], keep: float = 0.85) -> list[float]:
    """Exponential running mean; without it the methods' curves overlap."""
    smooth, state = [], values[0]
    for value in values:
        state = keep * state + (1 - keep) * value
        smooth.append(state)
    return smooth
