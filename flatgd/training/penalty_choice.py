"""How a training computes its penalty: which way, with which lambda and with which step length rho.

Where forward passes round to half precision, a difference of two gradients is mostly noise, so
`flatness_method: auto` takes second derivatives there. The figures are in docs/performance.md.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from flatgd.flatness import NOISE, Measured, PenaltySettings, StepError, best
from flatgd.training.setting_faults import faults_of_exact

RHOS = (1e-4, 3e-4, 1e-3, 3e-3)
RHOS_IN_HALF = (3e-3, 1e-2, 3e-2, 1e-1)
CHECKED_EVERY = 50  # steps between two estimates of the difference's error
MEASURED_EVERY = 10  # steps between two measurements of the lambda that gives `penalty_share`
AHEAD_TRIES = 4  # steps in a row that measure lookahead's distance while it is far off
AHEAD_WAITS = 16, 64  # steps to the next measurement: the first wait and, doubled, the longest
STATE_KEY = "flatness"  # the Trainer state's key for what checkpoints must keep
NO_SECOND_DERIVATIVE = (
    "this model has no second derivative (%s); the penalty is computed by finite differences, "
    "which are noisy in half precision"
)

logger = logging.getLogger(__name__)


def chosen_way(args: Any, in_half: bool, model: nn.Module, is_sharded: bool) -> str:
    """`flatness_method`, with `auto` resolved."""
    if args.flatness_method != "auto":
        return str(args.flatness_method)
    wants_difference = args.rho is not None or args.difference == "central"
    wants_difference |= args.penalty_momentum > 0 or args.penalty_layers != "all"
    if not in_half or wants_difference or is_sharded or not has_second_derivative(model):
        return "finite_difference"
    return "finite_difference" if list(faults_of_exact(args)) else "exact"


def has_second_derivative(model: nn.Module) -> bool:
    """Whether the attention has one: only eager and sdpa do (with its MATH kernel)."""
    config = getattr(model, "config", None)
    return getattr(config, "_attn_implementation", None) in (None, "eager", "sdpa")


def lacks_second_derivative(error: RuntimeError) -> bool:
    """Whether PyTorch raised the error because an operation has no second derivative."""
    text = str(error)
    has_none = "not implemented" in text or "once_differentiable" in text
    return ("derivative" in text and has_none) or "don't support automatic differentiation" in text


def kept(state: Any) -> dict[str, Any]:
    """What a training remembers of its penalty, in the Trainer's state: numbers, by name."""
    entry = state.stateful_callbacks.setdefault(STATE_KEY, {"args": {}, "attributes": {}})
    attributes: dict[str, Any] = entry["attributes"]
    return attributes


def known_weight(settings: PenaltySettings, state: Any) -> float | None:
    """lambda where it is known before a step's gradients: fixed, or from the last measurement. None
    where this step measures it."""
    if settings.weight is not None or not state.global_step % MEASURED_EVERY:
        return settings.weight
    weight: float | None = kept(state).get("flatness_weight")
    return weight


def measures_distance(state: Any) -> bool:
    """Whether this step of `lookahead` measures how far ahead `penalty_share` leads."""
    is_due: bool = state.global_step >= kept(state).get("measure_at", 0)
    return is_due


def keep_distance(state: Any, found: Measured, every: int) -> None:
    """Remember a measurement, and at which step the next one is due.

    That is the next step, until the distance has settled or AHEAD_TRIES are used up; the last try
    does not lengthen it, because no measurement would follow. Then the wait doubles each time, up
    to a step at which the running mean is refreshed anyway (each `every` steps).
    """
    memory = kept(state)
    tries = memory["tries"] = 0 if found.is_settled else memory.get("tries", 0) + 1
    is_last = tries % AHEAD_TRIES == 0
    is_longer = found.longest > memory.get("distance", math.inf)
    if found.is_settled or not (is_last and is_longer):
        memory |= {"flatness_weight": found.weight, "distance": found.longest}
    if not is_last:
        memory["measure_at"] = state.global_step + 1
        return
    shortest, longest = AHEAD_WAITS
    wait = memory["wait"] = min(2 * memory.get("wait", shortest / 2), longest)
    memory["measure_at"] = math.ceil((state.global_step + wait) / every) * every


class Check(NamedTuple):
    """An estimate of the difference's error, and what it cost in gradients of its rows."""

    error: float
    evaluations: int


def measured(
    estimate: Callable[..., list[StepError]],
    settings: PenaltySettings,
    args: Any,
    state: Any,
    in_half: bool,
    casts: bool,
) -> tuple[PenaltySettings, Check | None]:
    """The settings with the training's rho, and the error of the difference if it was estimated.

    `estimate` is `step_errors` with all but its last three arguments. Without `args.rho`, the first
    penalised step tries several and keeps the best. The error is estimated again every
    CHECKED_EVERY steps. `casts`: whether autocast rounds the weights to bfloat16.
    """
    memory = kept(state)
    known: float = args.rho or memory.get("rho", 0.0)
    check = None
    if "rho" not in memory or state.global_step - memory["checked_at"] >= CHECKED_EVERY:
        memory["checked_at"] = state.global_step
        rhos = (known,) if known else RHOS_IN_HALF if in_half else RHOS
        cast_to = torch.bfloat16 if casts else None
        found = best(estimate(rhos, settings.difference, cast_to))
        passes = 1 + len(rhos) * (4 if settings.difference == "central" else 2)
        known, check = found.rho, Check(found.error, passes)
        memory["rho"] = known
        _warn_of_noise(found, memory, state.global_step + 1)
    return replace(settings, rho=math.copysign(known, settings.rho)), check


def _warn_of_noise(found: StepError, memory: dict[str, Any], step: int) -> None:
    """Once a training."""
    if found.error <= NOISE or memory.get("has_warned"):
        return
    memory["has_warned"] = True
    logger.warning(
        "step %s: the penalty's gradient is mostly noise. With rho %g its estimated error is %.0f "
        "%% of its size. Set flatness_method: exact, or difference: central, or train in float32 "
        "(bf16: false, and dtype: float32 for a frozen base)",
        *(step, found.rho, 100 * found.error),
    )
