"""Tables and figures of a run's studies: flatness, durability, generalisation."""

from collections.abc import Mapping, Sequence

from flatgd.artifacts.rows import DurabilityStudy, FlatnessStudy, GeneralisationStudy
from flatgd.config.names import BACKBONE
from flatgd.report.blocks import Figure, Panel
from flatgd.report.cells import Table, interval, lost_after, number, significant
from flatgd.report.charts import Line, Mark, key, legend, panel
from flatgd.report.sentences import QUESTIONS

DOTTED, SOLID = "2 3", "100"
DASHES = {"start": DOTTED, "end": "", "matched": "6 4"}
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


def flatness_figures(study: FlatnessStudy, named: Mapping[str, Mark]) -> list[Figure]:
    """The paper's Figure 1 from real checkpoints; rises of L_S by perturbation; the way there."""
    return [_slices(study, named), _perturbed(study, named), _path(study, named)]


def _slices(study: FlatnessStudy, named: Mapping[str, Mark]) -> Figure:
    """L_S along and across the training."""
    titles = {
        "along": ("L_S from the backbone (0) through the end point (1)", ""),
        "across": ("L_S across the end point, in a random direction", "distance, relative"),
    }
    panels = []
    for part, (title, x_label) in titles.items():
        lines = []
        for name in dict.fromkeys(row["method"] for row in study["slices"]):
            rows = [r for r in study["slices"] if r["method"] == name and r["slice"] == part]
            mark = _curve(named[name])
            lines.append(Line(name, mark, [(r["at"], r["safety_loss"]) for r in rows]))
            test = [(r["at"], r["safety_loss_test"]) for r in rows]
            lines.append(Line(f"{name}, test rows", mark, test, DOTTED))
        panels.append(Panel(f"figure1_{part}", title, panel(title, lines, x_label)))
    table = Table(
        "L_S along and across the training",
        ["model", "slice", "at", "L_S, train", "L_S, test"],
        [
            [
                *(row["method"], row["slice"], f"{row['at']:g}"),
                *(number(row["safety_loss"], 4), number(row["safety_loss_test"], 4)),
            ]
            for row in study["slices"]
        ],
        "",
    )
    names = list(dict.fromkeys(row["method"] for row in study["slices"]))
    note = "Dotted: test rows."
    return Figure("Figure 1, from real checkpoints", panels, legend(named, names), table, note)


def _perturbed(study: FlatnessStudy, named: Mapping[str, Mark]) -> Figure:
    """The rise of L_S at each radius: the worst case found, and the mean of random directions."""
    worst, random, rows, shown = [], [], [], []
    for point in study["points"]:
        label, dash = f"{point['method']}, {point['at']}", DASHES[point["at"]]
        mark, base = named[point["method"]], point["safety_loss"]
        rises = [value - base for value in point["worst"]]
        means = [value[0] - base for value in point["random"]]
        worst.append(Line(label, mark, list(zip(study["radii"], rises, strict=True)), dash))
        random.append(Line(label, mark, list(zip(study["radii"], means, strict=True)), dash))
        shown.append((key(mark, dash or SOLID), label))
        rows += [
            [label, f"{radius:g}", significant(rise), significant(mean)]
            for radius, rise, mean in zip(study["radii"], rises, means, strict=True)
        ]
    panels = []
    for name, title, lines in (
        ("worst", "rise of L_S, worst case found", worst),
        ("random", "rise of L_S, mean of random directions", random),
    ):
        svg = panel(title, lines, "radius, relative to the weights", log_x=True)
        panels.append(Panel(f"perturbed_{name}", title, svg))
    header = ["point", "radius", "worst rise", "random rise"]
    return Figure("Perturbation", panels, shown, Table("Perturbation", header, rows, ""))


def _path(study: FlatnessStudy, named: Mapping[str, Mark]) -> Figure:
    """||grad L_S|| and L_S along the training."""
    names = list(dict.fromkeys(row["method"] for row in study["path"]))
    norms, losses = [], []
    for name in names:
        rows = [row for row in study["path"] if row["method"] == name]
        mark = named[name]
        norms.append(Line(name, mark, [(r["step"], r["grad_norm"]) for r in rows]))
        losses.append(Line(name, mark, [(r["step"], r["safety_loss"]) for r in rows]))
        test = [(r["step"], r["safety_loss_test"]) for r in rows]
        losses.append(Line(f"{name}, test rows", mark, test, DOTTED))
    titles = "‖grad L_S‖ along the training", "L_S on training rows, and (dotted) test rows"
    panels = [
        Panel("path_norm", titles[0], panel(titles[0], norms, "step", log_y=True)),
        Panel("path_loss", titles[1], panel(titles[1], losses, "step")),
    ]
    table = Table(
        "The way there",
        ["model", "step", "‖grad L_S‖", "L_S, train", "L_S, test"],
        [
            [
                *(row["method"], f"{row['step']:g}", significant(row["grad_norm"])),
                *(number(row["safety_loss"], 4), number(row["safety_loss_test"], 4)),
            ]
            for row in study["path"]
        ],
        "",
    )
    return Figure("The way there", panels, legend(named, names), table)


def _curve(mark: Mark) -> Mark:
    """A mark without points."""
    return mark._replace(shape="")


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


def durability_figure(study: DurabilityStudy, named: Mapping[str, Mark]) -> Figure:
    """The gain in contrast against the strength of each attack."""
    labels = ("steps of benign tuning", "steps of toxic tuning", "relative noise", "bits")
    panels, rows, shown = [], [], {}
    for attack, label in zip(ATTACKS, labels, strict=True):
        found = [row for row in study["curves"] if row["attack"] == attack]
        floor = {r["strength"]: r["contrast"] for r in found if r["method"] == BACKBONE}
        own = [row for row in found if row["method"] != BACKBONE]
        lines = []
        for method, at in dict.fromkeys((row["method"], row["at"]) for row in own):
            mine = [r for r in own if (r["method"], r["at"]) == (method, at)]
            gains = [(r["strength"], r["contrast"] - floor[r["strength"]]) for r in mine]
            name, dash = f"{method}, {at}", DASHES[at]
            lines.append(Line(name, named[method], gains, dash))
            shown[name] = key(named[method], dash or SOLID)
            rows += [[name, attack, f"{x:g}", number(y, 4)] for x, y in gains]
        title = f"gain after {label}"
        ticks = sorted(floor) if attack == "rounding" else None
        panels.append(
            Panel(f"durability_{attack}", title, panel(title, lines, label, x_ticks=ticks))
        )
    table = Table("Gain in contrast", ["point", "attack", "strength", "gain"], rows, "")
    marks_of = [(mark, name) for name, mark in shown.items()]
    return Figure("What is left of the gain in contrast", panels, marks_of, table)


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
        ["method", "data set", "metric", "seen", "unseen", "unseen − seen"],
        shown,
        "Each method was trained with and without a data set, or its toxic replies, and measured "
        "on the test rows of that data set. flatgd - safety_loss: the difference of their gaps.",
    )


def generalisation_figure(study: GeneralisationStudy, named: Mapping[str, Mark]) -> Figure:
    """Seen against unseen, one panel for each metric and test set."""
    panels, shown = [], {}
    rows = [row for row in study["rows"] if row["seen"] is not None and row["unseen"] is not None]
    for n, (dataset, metric) in enumerate(dict.fromkeys((r["dataset"], r["metric"]) for r in rows)):
        spots = []
        for row in rows:
            if (row["dataset"], row["metric"]) != (dataset, metric):
                continue
            shape = "circle" if row["question"] == "missing_negatives" else "up"
            mark = named[row["method"]]._replace(shape=shape)
            label = f"{row['method']}, {QUESTIONS[row['question']]}"
            spots.append(Line(label, mark, [(row["seen"] or 0.0, row["unseen"] or 0.0)]))
            shown[label] = key(mark)
        title = f"{dataset}: {metric}, unseen by seen"
        svg = panel(title, spots, "seen", diagonal=True)
        panels.append(Panel(f"generalisation_{n}", title, svg))
    marks_of = [(mark, label) for label, mark in shown.items()]
    return Figure("Seen and unseen", panels, marks_of, generalisation_table(study))
