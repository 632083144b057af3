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
distance, because E is bounded. Between two measurements lambda stays, so the distance shrinks with
||m||. It does not grow: further ahead, the gradients that m averages are larger.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

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

TRIES, NEAR, LARGEST_FACTOR = 4, 1.25, 30.0


def lookahead(
    parameters: Sequence[Tensor],
    objective: Objective,
    batch: Split,
    reduce: Reduce,
    settings: PenaltySettings,
    mean: Gradient | None,
    weight: float,
    longest: float = math.inf,
) -> tuple[FlatGradient, Gradient]:
    """(grad J, grad E of the penalised micro-batches), both at theta + 2 `weight` `mean`.

    Without `settings.squared` the step ahead is `weight` times `mean` / ||mean||; without a mean
    there is none. It is at most `longest` long. The second value is rescaled to the mean over those
    micro-batches and refreshes the running mean; it is empty if there are none. ||grad E|| at theta
    stays unknown. Parameters are restored bit for bit.
    """
    size = norm(mean) if mean else 0.0
    distance = min(weight * settings.factor(size), longest)
    known = _weight(settings, distance, size)
    with moved(parameters, mean, distance / size) if mean and size else nullcontext():
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
    mean: Gradient,
    distance: float,
) -> tuple[FlatGradient, Gradient, float]:
    """As `lookahead`, with grad E at theta, and the distance that gives `settings.share`.

    It begins at `distance` and is corrected until the share is within a fourth of what is wanted,
    at most TRIES times. If the last point is still too far ahead, or its gradient is not finite,
    the gradient is that at theta, without a penalty, and the distance one to begin with later.
    """
    size = norm(mean)
    g, here = both_gradients(parameters, objective, batch, reduce)
    torch._foreach_add_(here, g)
    torch._foreach_mul_(g, batch.rescale)
    size_here, wanted = norm(here), settings.share or 0.0
    flat = FlatGradient(here, 1.0, norm(g), 0.0, 0.0)
    if size == 0.0 or size_here == 0.0:
        return flat, g, distance
    parts: list[Any] = [*batch.penalised, *batch.others]
    for tried in range(1, TRIES + 1):
        with moved(parameters, mean, distance / size):
            ahead = plain_gradient(parameters, objective, parts, reduce).gradient
        share = norm(list(torch._foreach_sub(ahead, here))) / size_here
        is_too_far = not share <= wanted * NEAR  # also if it is not a number
        if not is_too_far and (tried == TRIES or share >= wanted / NEAR):
            weight = _weight(settings, distance, size)
            return FlatGradient(ahead, 1.0 + tried, flat.grad_norm, share, weight), g, distance
        del ahead  # before the next one is built
        factor = 1 / LARGEST_FACTOR if is_too_far else LARGEST_FACTOR
        if math.isfinite(share) and share > 0:
            factor = min(max(wanted / share, 1 / LARGEST_FACTOR), LARGEST_FACTOR)
        distance *= factor
    return flat._replace(evaluations=1.0 + TRIES), g, distance


def _weight(settings: PenaltySettings, distance: float, size: float) -> float | None:
    """The lambda of a step ahead; `size` is ||m||. None without m."""
    return distance / settings.factor(size) if size else None
