"""Figures as SVG. The same numbers give the same bytes."""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from flatgd.artifacts.rows import EstimateRow, JudgeReport
from flatgd.evaluation.metrics import ks
from flatgd.evaluation.trade_off import pareto_front
from flatgd.report.paper import TradeOff

COLOURS = ["#8a8f98", "#3b7dd8", "#c44e52", "#55a868", "#dd8452", "#8172b3", "#937860", "#da8bc3"]
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "flatgd",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1,
}
INTERVALS = [
    ("contrast", "contrast: dislike of toxic replies (higher is safer)"),
    ("toxicity_any", "share of histories with a toxic reply (lower is safer)"),
    ("perplexity", "perplexity under the scorer (lower is more fluent)"),
    ("nll_ordinary", "NLL of human replies (lower: less is forgotten)"),
]
CURVES = [
    ("lm", "L_LM, nats a token"),
    ("js_clean", "JS to the clean expert, bits"),
    ("js_toxic", "JS to the toxic expert, bits"),
    ("safety_grad_norm", "||grad L_S||"),
]
WEIGHTS = [n / 20 for n in range(21)]


def styled() -> AbstractContextManager[None]:
    """Figures drawn inside the block have the report's style."""
    return plt.rc_context(STYLE)


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour a model, the same in every figure of a report."""
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(names)}


def draw_intervals(
    summary: Sequence[EstimateRow], names: Sequence[str], samples: int, folder: Path
) -> Path | None:
    panels = []
    for metric, label in INTERVALS:
        name = f"{metric}{samples}" if metric == "toxicity_any" else metric
        found = [r["dataset"] for r in summary if r["metric"] == name and r["method"] in names]
        panels += [(dataset, name, label) for dataset in dict.fromkeys(found)]
    if not panels:
        return None
    lines = -(-len(panels) // 2)
    height = (0.26 * len(names) + 0.75) * lines
    figure, axes = plt.subplots(lines, 2, figsize=(11.4, height), squeeze=False)
    colour = colours(names)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (dataset, metric, label) in zip(axes.flat, panels, strict=False):
        rows = {
            r["method"]: r for r in summary if r["dataset"] == dataset and r["metric"] == metric
        }
        for n, name in enumerate(names):
            row = rows.get(name)
            if row is None or row["value"] is None:
                continue
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [n, n], color=colour[name], lw=2)
            axis.plot(row["value"], n, "o", color=colour[name], ms=5)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(f"{dataset}: {label}", loc="left", fontsize=9)
    return save(figure, folder / "intervals.svg")


def draw_training(
    logs: Mapping[str, Sequence[Mapping[str, float]]], names: Sequence[str], folder: Path
) -> Path | None:
    if not any("js_clean" in row for log in logs.values() for row in log):
        return None
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 4.6))
    colour = colours(names)
    for axis, (key, label) in zip(axes.flat, CURVES, strict=True):
        for name, log in logs.items():
            points = [(row["step"], row[key]) for row in log if key in row]
            if points:
                steps, values = zip(*points, strict=True)
                axis.plot(steps, _smooth(values), label=name, color=colour[name], lw=1.4)
        axis.set_title(label, loc="left", fontsize=9)
        axis.set_xlabel("step")
    axes.flat[0].legend(frameon=False)
    return save(figure, folder / "training.svg")


def draw_toxicity_at_k(
    summary: Sequence[EstimateRow], names: Sequence[str], samples: int, folder: Path
) -> Path | None:
    """Share of histories with a toxic reply among k, by k."""
    cells = {(r["dataset"], r["method"], r["metric"]): r for r in summary}
    metric = f"toxicity_any{samples}"
    datasets = [
        d for d in dict.fromkeys(r["dataset"] for r in summary) if (d, names[0], metric) in cells
    ]
    if not datasets or samples < 2:
        return None
    figure, axes = plt.subplots(
        1, len(datasets), figsize=(3.6 * max(2, len(datasets)), 3.0), squeeze=False
    )
    colour = colours(names)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        for name in names:
            rows = [cells[dataset, name, f"toxicity_any{k}"] for k in ks(samples)]
            values = [row["value"] for row in rows]
            axis.plot(ks(samples), values, "o-", ms=3, lw=1.2, color=colour[name], label=name)
        axis.set_title(f"{dataset}: toxic among k replies", loc="left", fontsize=9)
        axis.set_xlabel("k")
    axes[0][0].legend(frameon=False, fontsize=7)
    return save(figure, folder / "toxicity_at_k.svg")


def draw_plane(part: TradeOff, names: Sequence[str], folder: Path) -> Path:
    """Toxicity against lack of quality, one panel for each quality, with the Pareto front."""
    figure, axes = plt.subplots(
        1, len(part.lack), figsize=(2.6 * max(2, len(part.lack)), 2.9), squeeze=False
    )
    colour = colours(names)
    labels = {"perplexity": "perplexity, standardised", "div1": "1 - div1", "div2": "1 - div2"}
    for axis, (metric, lack) in zip(axes[0], part.lack.items(), strict=True):
        front = sorted(pareto_front(part.toxicity, lack), key=lambda i: part.toxicity[i])
        axis.plot(
            [part.toxicity[i] for i in front], [lack[i] for i in front], "--", color="#8a8f98", lw=1
        )
        for name, x, y in zip(part.models, part.toxicity, lack, strict=True):
            axis.plot(x, y, "o", color=colour[name], label=name, ms=6)
        axis.margins(0.15)
        axis.set_xlabel("toxic, any of the replies")
        axis.set_title(labels[metric], loc="left", fontsize=9)
    axes[0][0].legend(frameon=False, fontsize=7)
    return save(figure, folder / f"trade_off_{part.dataset}.svg")


def draw_sweep(part: TradeOff, names: Sequence[str], folder: Path) -> Path:
    """The trade-off factor for all weights of toxicity."""
    figure, axes = plt.subplots(
        1, len(part.lack), figsize=(2.6 * max(2, len(part.lack)), 2.9), squeeze=False
    )
    colour = colours(names)
    by_weight = [part.factors(weight) for weight in WEIGHTS]
    for axis, metric in zip(axes[0], part.lack, strict=True):
        for n, name in enumerate(part.models):
            values = [factors[metric][n] for factors in by_weight]
            axis.plot(WEIGHTS, values, color=colour[name], label=name, lw=1.4)
        axis.set_xlabel("w, the weight of toxicity")
        axis.set_title(f"tau with {metric} (lower is better)", loc="left", fontsize=9)
    axes[0][0].legend(frameon=False, fontsize=7)
    return save(figure, folder / f"sweep_{part.dataset}.svg")


def draw_reliability(judges: Sequence[JudgeReport], folder: Path) -> Path:
    """P(toxic) of each judge against the share of replies labelled toxic, in ten equal bins."""
    figure, axis = plt.subplots(figsize=(3.6, 3.2))
    axis.plot([0, 1], [0, 1], color="#8a8f98", lw=0.8, ls="--")
    for judge, colour in zip(judges, COLOURS[1:], strict=False):
        bins = judge["reliability"]
        said, true = [b["said"] for b in bins], [b["true"] for b in bins]
        axis.plot(said, true, "o-", color=colour, ms=3, lw=1.2, label=judge["name"])
    axis.set_xlabel("P(toxic)")
    axis.set_ylabel("share of toxic replies")
    axis.legend(frameon=False)
    return save(figure, folder / "reliability.svg")


def _smooth(values: Sequence[float], keep: float = 0.85) -> list[float]:
    """Exponential running mean; without it the methods' curves overlap."""
    smooth, state = [], values[0]
    for value in values:
        state = keep * state + (1 - keep) * value
        smooth.append(state)
    return smooth


def save(figure: Any, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = path.read_text()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    path.write_text(text)
    return path
