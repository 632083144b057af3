"""How flat L_S is at each method's end point, and at the point where all have the same L_S.

Written to report/flatness.json:

    points   for each point: L_S on training and test rows, ||grad L_S||, top eigenvalue and trace
             of its Hessian, relative flatness, L_S under random and worst-case perturbation
    path     along each training: step, L_S on training and test rows, ||grad L_S||
    slices   L_S on the line from the backbone through each end point, and on a line across it at
             that point (Figure 1)
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flatgd.artifacts import layout
from flatgd.artifacts.rows import FlatnessFigures, FlatnessPoint, LossLevels, PathRow, SliceRow
from flatgd.flatness.curvature import (
    Mean,
    gradient,
    loss_value,
    relative_direction,
    relative_flatness,
    top_eigenvalue,
    trace,
    under_random,
    under_worst,
)
from flatgd.flatness.penalty import moved, norm
from flatgd.runtime.display import Display
from flatgd.studies.landscape import Landscape, Point, State, between, open_run, write_study

RADII = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
ALONG = [round(-0.25 + 0.125 * i, 3) for i in range(15)]  # 0 the backbone, 1 the end point
ACROSS = [round(-0.1 + 0.02 * i, 3) for i in range(11)]  # relative to the weights


def study_flatness(
    checkpoints: Sequence[Path], rows: int, probes: int, display: Display | None = None
) -> Path:
    """Measure the checkpoints of one run; returns the study's file."""
    pipeline, names = open_run(checkpoints, display)
    land = Landscape(pipeline.context, rows)
    pipeline.context.display.line(
        "flatness", f"{rows} training and {rows} test rows, {probes} probes"
    )
    measured: list[FlatnessPoint] = []
    paths: list[PathRow] = []
    slices: list[SliceRow] = []
    points = land.points(names)
    total = len(points) + 2 * len(names)
    with pipeline.context.display.bar("flatness", total, "parts") as advance:
        for point in points:
            ends = [row for row in measured if row["method"] == point.method]
            is_end = bool(ends) and ends[0]["step"] == round(point.step, 2)
            found = ends[0].copy() if is_end else measure(land, point, probes)
            measured.append({**found, "at": point.at})
            advance(1)
        for name in names:
            paths += path_of(land, name)
            advance(1)
            slices += slices_of(land, name)
            advance(1)
    study: FlatnessFigures = {
        "rows": rows,
        "probes": probes,
        "radii": [*RADII],
        "points": measured,
        "path": paths,
        "slices": slices,
    }
    return write_study(pipeline, "flatness", [*map(layout.model, names)], study)


def measure(land: Landscape, point: Point, probes: int) -> FlatnessPoint:
    """The measures of one point; every point gets the same random probes."""
    land.at(point.state)
    parameters, losses = land.parameters, land.losses
    random = torch.Generator().manual_seed(0)
    return {
        "method": point.method,
        "at": point.at,
        "step": round(point.step, 2),
        **_levels(land),
        "grad_norm": norm(gradient(parameters, losses)),
        "top_eigenvalue": top_eigenvalue(parameters, losses, random),
        "trace": _plain(trace(parameters, losses, random, probes)),
        "relative_flatness": _plain(relative_flatness(parameters, losses, random, probes)),
        "random": [_plain(m) for m in under_random(parameters, losses, RADII, random)],
        "worst": under_worst(parameters, losses, RADII),
    }


def path_of(land: Landscape, name: str) -> list[PathRow]:
    """L_S and its gradient along one training."""
    rows: list[PathRow] = []
    for step, state in land.path(name):
        land.at(state)
        rows.append(
            {
                "method": name,
                "step": step,
                **_levels(land),
                "grad_norm": norm(gradient(land.parameters, land.losses)),
            }
        )
    return rows


def slices_of(land: Landscape, name: str) -> list[SliceRow]:
    """L_S along the line from the backbone to the end point, and across it in a random direction
    that is the same for every method."""
    end = land.end(name)
    rows: list[SliceRow] = [
        {
            "method": name,
            "slice": "along",
            "at": share,
            **_both(land, between(land.start, end, share)),
        }
        for share in ALONG
    ]
    land.at(end)
    across = _orthogonal(land, end)
    for share in ACROSS:
        with moved(land.parameters, across, share):
            rows.append({"method": name, "slice": "across", "at": share, **_levels(land)})
    return rows


def _both(land: Landscape, state: State) -> LossLevels:
    """L_S on training and test rows, at these weights."""
    land.at(state)
    return _levels(land)


def _levels(land: Landscape) -> LossLevels:
    """L_S on training and test rows, at the model's present weights."""
    return {
        "safety_loss": loss_value(land.losses),
        "safety_loss_test": loss_value(land.test_losses),
    }


def _orthogonal(land: Landscape, end: State) -> list[Tensor]:
    """A random direction orthogonal to the line from the backbone to the end point. Each tensor of
    it is as long as that of the weights."""
    drawn = relative_direction(land.parameters, torch.Generator().manual_seed(1))
    names = [name for name, p in land.model.named_parameters() if p.requires_grad]
    line = [
        (end[name] - land.start[name]).to(p.device)
        for name, p in zip(names, land.parameters, strict=True)
    ]
    size = norm(line)
    if size == 0.0:
        return drawn
    along = sum(float((d * w).sum()) for d, w in zip(drawn, line, strict=True)) / size**2
    return [d - along * w for d, w in zip(drawn, line, strict=True)]


def _plain(mean: Mean) -> list[float]:
    return [mean.value, mean.error]
