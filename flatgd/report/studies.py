"""Tables and figures of the studies of a run, as far as they have been made: flatness, durability,
generalisation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from flatgd.artifacts import layout
from flatgd.artifacts.rows import STUDY_FORMAT
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.recipe import Recipe
from flatgd.evaluation.summary import FLATNESS
from flatgd.report.cells import Table, interval, number, significant
from flatgd.report.figures import colours, save

Row = dict[str, Any]
LINES = {"start": ":", "end": "-", "matched": "--"}
QUESTIONS = {"missing_negatives": "toxic replies missing", "left_out": "left out"}


def load_study(recipe: Recipe, name: str) -> Any:
    """The figures of a study of a run; None where it was not made, or of other checkpoints than
    those that are there now."""
    try:
        study = json.loads((recipe.output / layout.study(name)).read_text())
        of = dict(study["of"])
        if study["format"] != STUDY_FORMAT:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    store, known = ArtifactStore(recipe.output), {layout.model(name) for name in recipe.methods}
    is_current = of.keys() <= known and all(store.fingerprint(a) == f for a, f in of.items())
    return study if is_current else None


def flatness_table(study: Row) -> Table:
    worst = study["radii"].index(0.01) if 0.01 in study["radii"] else 0
    rows = [
        [
            f"{p['method']}, {p['at']}",
            number(p["step"], 0),
            number(p["safety_loss"], 4),
            number(p["safety_loss_test"], 4),
            significant(p["grad_norm"]),
            significant(p["top_eigenvalue"]),
            _probed(p["trace"]),
            _probed(p["relative_flatness"]),
            significant(p["worst"][worst] - p["safety_loss"]),
            significant(p["random"][-1][0] - p["safety_loss"]),
        ]
        for p in study["points"]
    ]
    return Table(
        "Flatness of L_S",
        [
            *("point", "step", "L_S, train", "L_S, test", "‖grad‖ ↓", "top eigenvalue ↓"),
            *("trace ↓", "relative flatness ↓", f"worst rise at {study['radii'][worst]}"),
            f"random rise at {study['radii'][-1]}",
        ],
        rows,
        f"{study['rows']} training rows; ± is the standard error over {study['probes']} probes. "
        "matched: where on its path a method's L_S is that of the highest end point. Relative "
        "flatness (Petzka et al. 2021) does not change when layers are rescaled, eigenvalue and "
        "trace do. Rises of L_S: the worst with no weight moved by more than that share of its "
        "size, and in random directions of that length relative to each tensor.",
    )


def _probed(mean: Sequence[float]) -> str:
    return f"{significant(mean[0])} ± {significant(mean[1], 2)}"


def draw_flatness(study: Row, names: Sequence[str], folder: Path) -> Path:
    """Rise of L_S under perturbation, and ||grad L_S|| and L_S along the training."""
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2))
    colour = colours(names)
    for point in study["points"]:
        how = {"color": colour[point["method"]], "ls": LINES[point["at"]], "lw": 1.3}
        label = f"{point['method']}, {point['at']}"
        base = point["safety_loss"]
        axes[0][0].plot(study["radii"], [v - base for v in point["worst"]], label=label, **how)
        axes[0][1].plot(study["radii"], [v[0] - base for v in point["random"]], **how)
    for axis, title in zip(axes[0], ("worst case found", "random, mean"), strict=True):
        axis.set_title(f"rise of L_S, {title}", loc="left", fontsize=9)
        axis.set_xlabel("radius, relative to the weights")
        axis.set_xscale("log")
        axis.set_xticks(study["radii"], [f"{radius:g}" for radius in study["radii"]], fontsize=7)
        axis.minorticks_off()
    axes[0][0].legend(frameon=False, fontsize=7)
    for name in dict.fromkeys(row["method"] for row in study["path"]):
        rows = [row for row in study["path"] if row["method"] == name]
        steps = [row["step"] for row in rows]
        axes[1][0].plot(steps, [r["grad_norm"] for r in rows], "o-", ms=3, color=colour[name])
        axes[1][1].plot(steps, [r["safety_loss"] for r in rows], "o-", ms=3, color=colour[name])
        axes[1][1].plot(
            steps, [r["safety_loss_test"] for r in rows], "o:", ms=3, color=colour[name]
        )
    axes[1][0].set_title("‖grad L_S‖ along the training", loc="left", fontsize=9)
    axes[1][0].set_yscale("log")
    axes[1][1].set_title("L_S, training rows and (dotted) test rows", loc="left", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("step")
    return save(figure, folder / "flatness.svg")


def draw_slices(study: Row, names: Sequence[str], folder: Path) -> Path:
    """The paper's Figure 1 from real checkpoints: the loss along and across the way."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2))
    colour = colours(names)
    for axis, part in zip(axes, ("along", "across"), strict=True):
        for name in dict.fromkeys(row["method"] for row in study["slices"]):
            rows = [r for r in study["slices"] if r["method"] == name and r["slice"] == part]
            places = [row["at"] for row in rows]
            axis.plot(places, [r["safety_loss"] for r in rows], color=colour[name], label=name)
            axis.plot(places, [r["safety_loss_test"] for r in rows], ":", color=colour[name], lw=1)
    axes[0].set_title("L_S from the backbone (0) through the end point (1)", loc="left", fontsize=9)
    axes[1].set_title("L_S across the end point, random direction", loc="left", fontsize=9)
    axes[1].set_xlabel("distance, relative; dotted: test rows")
    axes[0].legend(frameon=False)
    return save(figure, folder / "figure1.svg")


def durability_table(study: Row, flatness: Row | None) -> Table:
    """Beside each point its relative flatness, where that was measured."""
    flat = {
        (p["method"], p["at"], p["step"]): p["relative_flatness"]
        for p in (flatness or {"points": []})["points"]
    }
    points = dict.fromkeys((r["method"], r["at"]) for r in study["lost"])
    cells = {(r["method"], r["at"], r["attack"]): r for r in study["lost"]}
    rows = []
    for method, at in points:
        own = {
            attack: cells[method, at, attack] for attack in ("benign", "toxic", "noise", "rounding")
        }
        mean = flat.get((method, at, own["benign"]["step"]))
        rows.append(
            [
                f"{method}, {at}",
                number(own["benign"]["gain"], 4),
                *(_lasting(own[attack], study, attack) for attack in own),
                _probed(mean) if mean else "",
            ]
        )
    return Table(
        "Durability of safety",
        [
            *("point", "gain in contrast", "benign tuning", "toxic tuning", "noise", "rounding"),
            "relative flatness",
        ],
        rows,
        "Gain in contrast over the backbone treated alike, and what it takes until half of it is "
        f"lost: steps of "
        f"tuning ({study['steps']} at most), relative size of the noise, bits of the weights. "
        "'kept' tells the share of the gain that is left where half never was lost.",
    )


def _lasting(row: Row, study: Row, attack: str) -> str:
    if row["half_lost"] is not None:
        lost = row["half_lost"]
        if attack == "rounding":
            return f"{32 - lost:.1f} bits"
        return f"{lost:.0f} steps" if attack in ("benign", "toxic") else f"{lost:.3f}"
    return "no gain" if row["kept"] is None else f"kept {row['kept']:.0%}"


def draw_durability(study: Row, names: Sequence[str], folder: Path) -> Path:
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2))
    colour = colours(names)
    attacks = ("benign", "toxic", "noise", "rounding")
    labels = ("steps of benign tuning", "steps of toxic tuning", "noise, relative", "bits")
    for axis, attack, label in zip(axes.flat, attacks, labels, strict=True):
        rows = [row for row in study["curves"] if row["attack"] == attack]
        own = [row for row in rows if row["method"] != "backbone"]
        for method, at in dict.fromkeys((row["method"], row["at"]) for row in own):
            mine = [r for r in rows if (r["method"], r["at"]) == (method, at)]
            floor = {r["strength"]: r["contrast"] for r in rows if r["method"] == "backbone"}
            gains = [r["contrast"] - floor[r["strength"]] for r in mine]
            places = [str(r["strength"]) if attack == "rounding" else r["strength"] for r in mine]
            how = {"color": colour[method], "ls": LINES[at], "label": f"{method}, {at}"}
            axis.plot(places, gains, lw=1.3, **how)
        axis.axhline(0.0, color="#8a8f98", lw=0.8)
        axis.set_title(f"gain after {label}", loc="left", fontsize=9)
    axes.flat[0].legend(frameon=False, fontsize=7)
    return save(figure, folder / "durability.svg")


def generalisation_table(study: Row) -> Table:
    shown = [
        [
            row["method"],
            f"{row['dataset']}: {QUESTIONS[row['question']]}",
            row["metric"],
            "" if row["seen"] is None else number(row["seen"], 3),
            "" if row["unseen"] is None else number(row["unseen"], 3),
            interval(row["value"], row["low"], row["high"], 3),
        ]
        for row in study["rows"]
    ]
    return Table(
        "Generalisation: what was not trained on",
        ["method", "data set", "metric", "seen", "unseen", "unseen less seen"],
        shown,
        "Each method trained with and without a data set's toxic replies, or the data set "
        "altogether, measured on its test rows. flatgd - safety_loss: the difference of the two "
        "methods' gaps.",
    )


def draw_generalisation(study: Row, names: Sequence[str], folder: Path) -> Path:
    """Seen against unseen, a panel a metric and test set."""
    rows = study["rows"]
    panels = list(dict.fromkeys((row["dataset"], row["metric"]) for row in rows))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(2.6 * columns, 2.8 * lines), squeeze=False)
    colour = colours(names)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (dataset, metric) in zip(axes.flat, panels, strict=False):
        for row in rows:
            if (row["dataset"], row["metric"]) != (dataset, metric) or row["seen"] is None:
                continue
            mark = "o" if row["question"] == "missing_negatives" else "^"
            axis.plot(
                row["seen"],
                row["unseen"],
                mark,
                color=colour[row["method"]],
                label=f"{row['method']}, {QUESTIONS[row['question']]}",
            )
        low, high = axis.get_xlim()
        axis.axline((low, low), (high, high), color="#8a8f98", lw=0.8, ls="--")
        axis.margins(0.15)
        axis.set_title(f"{dataset}: {metric}", loc="left", fontsize=8)
        axis.set_xlabel("seen")
        axis.set_ylabel("unseen")
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(),
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=7,
    )
    return save(figure, folder / "generalisation.svg")


def told_by(flat: Row | None, durable: Row | None, unseen: Row | None) -> list[str]:
    """What the studies say of flatgd beside safety_loss, in sentences."""
    told = []
    if flat and (pair := _pair(flat["points"], "matched")):
        (a, error_a), (b, error_b) = (point["relative_flatness"] for point in pair)
        is_clear = abs(a - b) > 2 * math.hypot(error_a, error_b)
        verdict = ("lower" if a < b else "higher") if is_clear else "undecided"
        told.append(
            f"At the same L_S of {pair[0]['safety_loss']:.4f} flatgd's relative flatness is "
            f"{significant(a)} ± {significant(error_a, 2)}, safety_loss's {significant(b)} ± "
            f"{significant(error_b, 2)}: {verdict}; ‖grad L_S‖ {significant(pair[0]['grad_norm'])} "
            f"and {significant(pair[1]['grad_norm'])}."
        )
    if durable:
        for attack in ("benign", "toxic"):
            rows = [row for row in durable["lost"] if row["attack"] == attack]
            if pair := _pair(rows, "matched"):
                shown = [_lasting(row, durable, attack) for row in pair]
                told.append(
                    f"Until half of the gain in contrast is lost to {attack} tuning, from the same "
                    f"L_S: flatgd {shown[0]}, safety_loss {shown[1]}."
                )
    for row in unseen["rows"] if unseen else []:
        if row["method"] == " - ".join(FLATNESS) and row["metric"] == "contrast":
            is_clear = row["low"] is not None and (row["low"] > 0 or row["high"] < 0)
            gap = interval(row["value"], row["low"], row["high"], 3)
            told.append(
                f"{row['dataset']} {QUESTIONS[row['question']]}: flatgd's change in contrast less "
                f"safety_loss's {gap}{'' if is_clear else ' (undecided)'}; above 0, it "
                "generalises better."
            )
    return told


def _pair(rows: Sequence[Row], at: str) -> list[Row]:
    """flatgd's and safety_loss's row at such a point, none where one is missing."""
    found = {row["method"]: row for row in rows if row["at"] == at}
    return [found[name] for name in FLATNESS] if found.keys() >= set(FLATNESS) else []
