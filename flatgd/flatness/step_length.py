"""The step length rho of a finite difference: how wrong a difference is, and which rho is best.

Let d+ and d- be the forward and the backward difference of grad E along u, for one rho:

    d+ = (grad E(theta + rho u) - grad E(theta)) / rho
    d- = (grad E(theta) - grad E(theta - rho u)) / rho

Both estimate H u. A forward difference is off by rho/2 times a third derivative, and by rounding
noise over rho. Both kinds of error are in (d+ - d-) / 2, so its norm over that of (d+ + d-) / 2
estimates the relative error of d+. A central difference is compared with the one at half its rho.

Where forward passes cast the weights to half precision, a second error is known without a pass: the
cast may swallow the step. It is symmetric in the step's sign, so d+ - d- does not show it.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from flatgd.flatness.objective import Gradient, Objective, Reduce
from flatgd.flatness.penalty import moved, norm, penalised_gradient

SMALL = 0.05  # an error that does not matter: the penalty's direction is right to three degrees
NOISE = 0.5  # a penalty with a larger relative error is noise


class StepError(NamedTuple):
    """The estimated relative error of the penalty's gradient at one rho; 1 where the step changes
    nothing."""

    rho: float
    error: float


def step_errors(
    parameters: Sequence[Tensor],
    objective: Objective,
    micro_batches: Sequence[Any],
    reduce: Reduce,
    rhos: Sequence[float],
    difference: Literal["forward", "central"] = "forward",
    cast_to: torch.dtype | None = None,
) -> list[StepError]:
    """The error at each rho along u = grad E / ||grad E||, estimated on these micro-batches.

    `cast_to` is the precision to which forward passes cast the weights. Takes one pass, and two
    (central: four) for each rho. Parameters are restored bit for bit.
    """
    given = parameters, objective, micro_batches, reduce
    g = penalised_gradient(*given)
    size = norm(g)
    if size == 0.0:
        return [StepError(rho, 0.0) for rho in rhos]
    found = []
    for rho in rhos:
        if difference == "central":
            error = _central_error(given, g, size, rho)
        else:
            error = _forward_error(given, g, size, rho)
        if cast_to is not None:
            error = max(error, cast_error(parameters, g, rho / size, cast_to))
        found.append(StepError(rho, error))
    return found


def best(errors: Sequence[StepError]) -> StepError:
    """The longest step whose error is small: at most SMALL, or at most the smallest of all.

    Among small errors the longer step is the safer one: as training flattens the loss, the
    difference shrinks and its rounding noise stays.
    """
    least = min(found.error for found in errors)
    fine = [found for found in errors if found.error <= max(SMALL, least)]
    return max(fine, key=lambda found: found.rho)


def cast_error(
    parameters: Sequence[Tensor], direction: Gradient, scale: float, dtype: torch.dtype
) -> float:
    """The relative error of the step scale * direction after weights are cast to `dtype`. Vectors,
    such as those of norms and biases, are not cast by autocast and do not count."""
    wrong, whole = [], []
    for parameter, along in zip(parameters, direction, strict=True):
        if parameter.dim() < 2:
            continue
        weight, step = parameter.detach(), scale * along
        made = (weight + step).to(dtype).to(step.dtype) - weight.to(dtype).to(step.dtype)
        wrong.append(made - step)
        whole.append(step)
    return norm(wrong) / norm(whole) if whole and norm(whole) > 0 else 0.0


def _forward_error(given: Any, g: Gradient, size: float, rho: float) -> float:
    ahead, behind = (_gradient_at(given, g, sign * rho / size) for sign in (1, -1))
    torch._foreach_sub_(ahead, behind)  # 2 rho times the mean of d+ and d-
    torch._foreach_sub_(behind, g)
    torch._foreach_mul_(behind, 2.0)
    torch._foreach_add_(behind, ahead)  # ahead - 2 g + behind = rho (d+ - d-)
    return _over(norm(behind), norm(ahead))


def _central_error(given: Any, g: Gradient, size: float, rho: float) -> float:
    wide, narrow = (_difference(given, g, size, rho / part) for part in (1, 2))
    torch._foreach_sub_(narrow, wide)
    return _over(norm(narrow), norm(wide))


def _difference(given: Any, g: Gradient, size: float, rho: float) -> Gradient:
    ahead, behind = (_gradient_at(given, g, sign * rho / size) for sign in (1, -1))
    torch._foreach_sub_(ahead, behind)
    torch._foreach_mul_(ahead, 1 / (2 * rho))
    return ahead


def _gradient_at(given: Any, direction: Gradient, scale: float) -> Gradient:
    with moved(given[0], direction, scale):
        return penalised_gradient(*given)


def _over(wrong: float, whole: float) -> float:
    return wrong / whole if whole > 0 else 1.0
