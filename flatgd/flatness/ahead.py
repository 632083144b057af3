"""The gradient of J = R + E + lambda ||grad E||^2 in one pass, at a point ahead of the weights.

m is a running mean of grad E over steps. To first order in lambda

    grad E(theta + 2 lambda m) = grad E + 2 lambda H m,

and 2 lambda H grad E is the penalty's gradient. So all gradients are taken at theta + 2 lambda m,
and none is subtracted from another. Two things differ from J. m lags behind grad E. R is
differentiated at the same point, which adds 2 lambda H_R m, where H_R is the Hessian of R.

m needs grad E apart from grad R now and then. A `Split` names the micro-batches that keep them
apart: one forward and two backward passes each, where both terms have a graph.

The distance to the point ahead follows from `PenaltySettings.share`, which here is the change of
the whole gradient on the way, relative to its norm. The change of grad E alone would not bound the
distance, because E is bounded. A measurement tries one distance and corrects it for later steps.
Between two measurements lambda stays, so the distance shrinks with ||m||. It does not grow: further
ahead, the gradients that m averages are larger.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flatgd.flatness.objective import (
    FlatGradient,
    Gradient,
    Objective,
    PenaltySettings,
    Reduce,
    Split,
)
from flatgd.flatness.penalty import both_gradients, moved, norm, plain_gradient

TOLERANCE = 1.5  # factor by which a share may miss the one wanted
LARGEST_FACTOR = 300.0  # of one correction


class Mean(NamedTuple):
    """A running mean of grad E, and its norm."""

    gradient: Gradient
    size: float


class Measured(NamedTuple):
    """`gradient`: the step's. `fresh`: grad E of the penalised micro-batches at theta, rescaled to
    the mean over them. `weight` and `longest`: lambda and the largest distance for later steps.
    `is_settled`: whether the share was near the one wanted.
    """

    gradient: FlatGradient
    fresh: Gradient
    weight: float
    longest: float
    is_settled: bool


def lookahead(
    parameters: Sequence[Tensor],
    objective: Objective,
    batch: Split,
    reduce: Reduce,
    settings: PenaltySettings,
    mean: Mean | None,
    weight: float,
    longest: float = math.inf,
) -> tuple[FlatGradient, Gradient]:
    """(grad J, grad E of the penalised micro-batches), both at theta + 2 `weight` m.

    Without `settings.squared` the step ahead is `weight` times m / ||m||; without a mean there is
    none. It is at most `longest` long. The second value is rescaled to the mean over those
    micro-batches and refreshes the running mean; it is empty if there are none. ||grad E|| at theta
    stays unknown. Parameters are restored bit for bit.
    """
    known: float | None = None
    there: AbstractContextManager[None] = nullcontext()
    if mean and mean.size:
        distance = min(weight * settings.factor(mean.size), longest)
        known = _weight(settings, distance, mean.size)
        there = moved(parameters, mean.gradient, distance / mean.size)
    with there:
        if not batch.penalised:
            flat = plain_gradient(parameters, objective, batch.others, reduce)
            return flat._replace(flatness_weight=known), []
        g, total = both_gradients(parameters, objective, batch, reduce)
    torch._foreach_add_(total, g)
    torch._foreach_mul_(g, batch.rescale)
    return FlatGradient(total, flatness_weight=known), g


def measured_lookahead(
    parameters: Sequence[Tensor],
    objective: Objective,
    batch: Split,
    reduce: Reduce,
    settings: PenaltySettings,
    mean: Mean,
    weight: float,
    longest: float,
) -> Measured:
    """As `lookahead`, with grad E at theta, and a distance corrected towards `settings.share`.

    Without a `weight` it goes `longest` ahead. Where the share is more than TOLERANCE times the one
    wanted, or no number, the gradient is that at theta, without a penalty.
    """
    size, wanted = mean.size, settings.share or 0.0
    g, here = both_gradients(parameters, objective, batch, reduce)
    torch._foreach_add_(here, g)
    torch._foreach_mul_(g, batch.rescale)
    size_here, flat = norm(here), FlatGradient(here, 1.0, norm(g), 0.0, 0.0)
    if size == 0.0 or size_here == 0.0:
        return Measured(flat, g, weight, longest, is_settled=False)
    distance = min(weight * settings.factor(size), longest) if weight else longest
    with moved(parameters, mean.gradient, distance / size):
        parts: list[Any] = [*batch.penalised, *batch.others]
        ahead = plain_gradient(parameters, objective, parts, reduce).gradient
    share = norm(list(torch._foreach_sub(ahead, here))) / size_here
    flat = flat._replace(evaluations=2.0)
    if share <= wanted * TOLERANCE:
        used = _weight(settings, distance, size)
        flat = flat._replace(gradient=ahead, penalty_share=share, flatness_weight=used)
    is_settled = wanted / TOLERANCE <= share <= wanted * TOLERANCE
    if not is_settled:
        distance *= _correction(share, wanted)
    return Measured(flat, g, _weight(settings, distance, size), distance, is_settled)


def _correction(share: float, wanted: float) -> float:
    """The factor of the distance that leads to the share wanted, if shares grow in proportion."""
    if not math.isfinite(share):
        return 1 / LARGEST_FACTOR
    return min(wanted / share, LARGEST_FACTOR) if share > 0 else LARGEST_FACTOR


def _weight(settings: PenaltySettings, distance: float, size: float) -> float:
    """The lambda of a step ahead; `size` is ||m||."""
    return distance / settings.factor(size)
