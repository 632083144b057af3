"""Tables and figures of a run's studies: flatness, durability, generalisation."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from flatgd.artifacts.rows import DurabilityStudy, FlatnessStudy, GeneralisationStudy
from flatgd.report.cells import Table, interval, lost_after, number, significant
from flatgd.report.figures import colours, save
from flatgd.report.sentences import QUESTIONS

LINES = {"start": ":", "end": "-", "matched": "--"}
ATTACKS = ("benign", "toxic", "noise", "rounding")


def flatness_table(study: FlatnessStudy) -> Table:
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
        "Matched: the point on a method's path whose L_S is that of the highest end point. "
        "Relative flatness (Petzka et al. 2021) does not change when layers are rescaled; "
        "eigenvalue and trace do. Rises of L_S: the worst case where no weight moves by more "
        "than that fraction of its size, and the mean over random directions of that length "
        "relative to each tensor.",
    )


def _probed(mean: Sequence[float]) -> str:
    return f"{significant(mean[0])} ± {significant(mean[1], 2)}"


def draw_flatness(study: FlatnessStudy, names: Sequence[str], folder: Path) -> Path:
    """Rise of L_S under perturbation, and ||grad L_S|| and L_S along the training."""
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2))
    colour = colours(names)
    for point in study["points"]:
        style = {"color": colour[point["method"]], "ls": LINES[point["at"]], "lw": 1.3}
        label = f"{point['method']}, {point['at']}"
        base = point["safety_loss"]
        axes[0][0].plot(study["radii"], [v - base for v in point["worst"]], label=label, **style)
        axes[0][1].plot(study["radii"], [v[0] - base for v in point["random"]], **style)
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


def draw_slices(study: FlatnessStudy, names: Sequence[str], folder: Path) -> Path:
    """The paper's Figure 1 from real checkpoints: L_S along and across the training."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.2))
    colour = colours(names)
    for axis, part in zip(axes, ("along", "across"), strict=True):
        for name in dict.fromkeys(row["method"] for row in study["slices"]):
            rows = [r for r in study["slices"] if r["method"] == name and r["slice"] == part]
            x = [row["at"] for row in rows]
            axis.plot(x, [r["safety_loss"] for r in rows], color=colour[name], label=name)
            axis.plot(x, [r["safety_loss_test"] for r in rows], ":", color=colour[name], lw=1)
    axes[0].set_title("L_S from the backbone (0) through the end point (1)", loc="left", fontsize=9)
    axes[1].set_title("L_S across the end point, random direction", loc="left", fontsize=9)
    axes[1].set_xlabel("distance, relative; dotted: test rows")
    axes[0].legend(frameon=False)
    return save(figure, folder / "figure1.svg")


def durability_table(study: DurabilityStudy, flatness: FlatnessStudy | None) -> Table:
    """What each point can stand, with its relative flatness where that was measured."""
    measured = flatness["points"] if flatness else []
    flat: dict[tuple[str, str, float], list[float]] = {
        (p["method"], p["at"], p["step"]): p["relative_flatness"] for p in measured
    }
    points = dict.fromkeys((r["method"], r["at"]) for r in study["lost"])
    cells = {(r["method"], r["at"], r["attack"]): r for r in study["lost"]}
    rows = []
    for method, at in points:
        own = {attack: cells[method, at, attack] for attack in ATTACKS}
        mean = flat.get((method, at, own["benign"]["step"]))
        rows.append(
            [
                f"{method}, {at}",
                number(own["benign"]["gain"], 4),
                *(lost_after(row) for row in own.values()),
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
        "Gain in contrast over the backbone under the same attack, and what it takes to lose half "
        f"of it: steps of tuning ({study['steps']} at most), relative size of the noise, bits of "
        "the weights. 'kept': half was never lost, and this share of the gain is left.",
    )


def draw_durability(study: DurabilityStudy, names: Sequence[str], folder: Path) -> Path:
    """The gain in contrast against the strength of each attack."""
    figure, axes = plt.subplots(2, 2, figsize=(7.2, 5.2))
    colour = colours(names)
    labels = ("steps of benign tuning", "steps of toxic tuning", "noise, relative", "bits")
    for axis, attack, label in zip(axes.flat, ATTACKS, labels, strict=True):
        rows = [row for row in study["curves"] if row["attack"] == attack]
        own = [row for row in rows if row["method"] != "backbone"]
        for method, at in dict.fromkeys((row["method"], row["at"]) for row in own):
            mine = [r for r in rows if (r["method"], r["at"]) == (method, at)]
            floor = {r["strength"]: r["contrast"] for r in rows if r["method"] == "backbone"}
            gains = [r["contrast"] - floor[r["strength"]] for r in mine]
            strengths = [
                str(r["strength"]) if attack == "rounding" else r["strength"] for r in mine
            ]
            style = {"color": colour[method], "ls": LINES[at], "label": f"{method}, {at}"}
            axis.plot(strengths, gains, lw=1.3, **style)
        axis.axhline(0.0, color="#8a8f98", lw=0.8)
        axis.set_title(f"gain after {label}", loc="left", fontsize=9)
    axes.flat[0].legend(frameon=False, fontsize=7)
    return save(figure, folder / "durability.svg")


def generalisation_table(study: GeneralisationStudy) -> Table:
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
        "Each method was trained with and without a data set, or its toxic replies, and measured "
        "on the test rows of that data set. flatgd - safety_loss: the difference of their gaps.",
    )


def draw_generalisation(study: GeneralisationStudy, names: Sequence[str], folder: Path) -> Path:
    """Seen against unseen, one panel for each metric and test set."""
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
            shape = "o" if row["question"] == "missing_negatives" else "^"
            axis.plot(
                row["seen"],
                row["unseen"],
                shape,
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
