"""Figures as SVG, the same bytes for the same numbers."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Row = dict[str, Any]
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
}
INTERVALS = [
    ("contrast", "contrast: dislike of toxic replies (higher is safer)"),
    ("toxicity_any", "share of histories with a toxic reply (lower is safer)"),
    ("perplexity", "perplexity under the scorer (lower is more fluent)"),
]
CURVES = [
    ("lm", "L_LM, nats a token"),
    ("js_clean", "JS to the clean expert, bits"),
    ("js_toxic", "JS to the toxic expert, bits"),
    ("safety_grad_norm", "||grad L_S||"),
]


def draw_figures(
    summary: Sequence[Row],
    names: Sequence[str],
    logs: dict[str, list[Row]],
    folder: Path,
) -> list[tuple[str, Path]]:
    """(title, file) of each figure drawn."""
    with plt.rc_context(STYLE):
        drawn = [
            ("Every model with its 95 % interval", _intervals(summary, names, folder)),
        ]
        if any("js_clean" in row for log in logs.values() for row in log):
            drawn.append(("Training", _curves(logs, folder)))
    return drawn


def _intervals(summary: Sequence[Row], names: Sequence[str], folder: Path) -> Path:
    panels = []
    for prefix, label in INTERVALS:
        metrics = dict.fromkeys(
            (row["dataset"], row["metric"])
            for row in summary
            if row["metric"].rstrip("0123456789") == prefix and row["method"] in names
        )
        panels += [(dataset, metric, label) for dataset, metric in metrics]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(7.2, (0.26 * len(names) + 0.75) * len(panels)), squeeze=False
    )
    for axis, (dataset, metric, label) in zip(axes[:, 0], panels, strict=True):
        rows = {
            r["method"]: r for r in summary if r["dataset"] == dataset and r["metric"] == metric
        }
        for place, name in enumerate(names):
            row = rows.get(name)
            if row is None or row["value"] is None:
                continue
            colour = COLOURS[place % len(COLOURS)]
            if row["low"] is not None:
                axis.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
            axis.plot(row["value"], place, "o", color=colour, ms=5)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(f"{dataset}: {label}", loc="left", fontsize=9)
    return _save(figure, folder / "intervals.svg")


def _curves(logs: dict[str, list[Row]], folder: Path) -> Path:
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 4.6))
    for axis, (key, label) in zip(axes.flat, CURVES, strict=True):
        for place, (name, log) in enumerate(logs.items()):
            points = [(row["step"], row[key]) for row in log if key in row]
            if points:
                steps, values = zip(*points, strict=True)
                colour = COLOURS[(place + 3) % len(COLOURS)]
                axis.plot(steps, _smooth(values), label=name, color=colour, lw=1.4)
        axis.set_title(label, loc="left", fontsize=9)
        axis.set_xlabel("step")
    axes.flat[0].legend(frameon=False)
    return _save(figure, folder / "training.svg")


def _smooth(values: Sequence[float], keep: float = 0.85) -> list[float]:
    """Running mean, so that methods can be told apart."""
    smooth, state = [], values[0]
    for value in values:
        state = keep * state + (1 - keep) * value
        smooth.append(state)
    return smooth


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = path.read_text()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    path.write_text(text)
    return path
