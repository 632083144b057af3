"""How a step's penalty is computed: which way, from which rho or distance, with what is kept of
earlier steps."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatgd.flatness import (
    FlatGradient,
    Mean,
    Objective,
    PenaltySettings,
    Split,
    exact,
    fast_difference,
    finite_difference,
    lookahead,
    measured_lookahead,
    plain_gradient,
    reused_penalty,
    step_errors,
)
from flatgd.flatness.penalty import frozen_but, norm
from flatgd.methods.base import Method
from flatgd.models.heads import unwrapped
from flatgd.training.gradient_reduction import reduction_for
from flatgd.training.penalty_choice import (
    Check,
    chosen_way,
    keep_distance,
    kept,
    known_weight,
    measured,
    measures_distance,
)
from flatgd.training.penalty_memory import MEAN, PENALTY, next_mean, stored
from flatgd.training.precision import computes_in_half
from flatgd.training.step_state import StepState


class PenaltyPasses:
    """The passes of FlatnessMixin's step, on the attributes of a Trainer."""

    args: Any
    accelerator: Any
    state: Any
    model: Any
    optimizer: Any
    method: Method
    step_state: StepState

    @property
    def flatness_method(self) -> str:
        """The configured way to the penalty's gradient, with `auto` resolved."""
        if self.step_state.has_no_second_derivative and self.args.flatness_method == "auto":
            return "finite_difference"
        model = unwrapped(self.model)
        return chosen_way(self.args, self._in_half, model, self.accelerator.is_fsdp2)

    @cached_property
    def _in_half(self) -> bool:
        """Whether forward passes round to half precision."""
        return computes_in_half(self.model, self.accelerator.mixed_precision)

    def penalty_settings(self) -> PenaltySettings | None:
        """The penalty as configured, for the precision that forward passes really use."""
        settings: PenaltySettings | None = self.args.penalty_settings(self._in_half)
        return settings

    def _with_rho(
        self,
        model: nn.Module,
        step: tuple[list[Tensor], Objective, Split],
        settings: Any,
        on: list[int] | None,
    ) -> tuple[PenaltySettings, Check | None]:
        """The settings with the training's rho, and the estimated error if this step checks it."""
        parameters, objective, split = step
        reduction = reduction_for(self.accelerator, model)
        with reduction.local(), frozen_but(parameters, _places(parameters, on)):
            given = _part(parameters, on), objective, split.penalised, reduction.reduce
            casts = self.accelerator.mixed_precision == "bf16"
            return measured(
                partial(step_errors, *given), settings, self.args, self.state, self._in_half, casts
            )

    def _penalty_now(self) -> PenaltySettings | None:
        """The penalty of this step, or None if the step has none."""
        step = self.state.global_step
        warming_up = step < self.args.penalty_warmup * self.state.max_steps
        if not self.method.is_flat or warming_up:
            return None
        settings = self.penalty_settings()
        if settings and self.flatness_method == "fast" and step // self.args.penalty_every % 2:
            return replace(settings, rho=-settings.rho)  # errors of order rho cancel over two steps
        return settings

    def _way_now(self, parameters: list[Tensor], on: list[int] | None) -> str:
        """What a penalised step does. Between two computations of the penalty it reuses the last;
        with `lookahead` it goes ahead along the last running mean."""
        way = self.flatness_method
        if not self.state.global_step % self.args.penalty_every:
            return way
        if way != "lookahead":
            return "reused" if self._stored(PENALTY, parameters, on) else way
        must_refresh = measures_distance(self.state) or not self._stored(MEAN, parameters)
        return way if must_refresh else "ahead"

    def _stored(
        self, key: str, parameters: list[Tensor], on: list[int] | None = None
    ) -> list[Tensor] | None:
        """What an earlier step has left for each parameter, or for those at the places `on`."""
        return stored(self.optimizer, _part(parameters, on), key)

    def _gradient(
        self,
        model: nn.Module,
        parameters: list[Tensor],
        objective: Objective,
        split: Split,
        settings: PenaltySettings | None,
        way: str,
        on: list[int] | None,
    ) -> FlatGradient:
        reduction = reduction_for(self.accelerator, model)
        with reduction.local():
            given = parameters, objective, split.penalised, reduction.reduce
            if settings is None:
                return plain_gradient(*given)
            if way == "reused":
                penalty: Any = self._stored(PENALTY, parameters, on)
                return reused_penalty(*given, settings, penalty, on)
            step = parameters, objective, split, reduction.reduce, settings
            if way in ("lookahead", "ahead"):
                return self._look_ahead(*step)
            reuses = self.args.penalty_every > 1
            if way == "exact":
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                    flat = exact(*step)
            elif way == "fast":
                weight = None if reuses else known_weight(settings, self.state)
                flat = fast_difference(*step, weight)
                if flat.hessian_u is not None:
                    kept(self.state)["flatness_weight"] = flat.flatness_weight
            else:
                flat = finite_difference(*step, partial(self._running_mean, parameters), on)
            if reuses and self.state.global_step and (penalty := flat.penalty):
                self.step_state.keep(PENALTY, _part(parameters, on), penalty)
            return flat._replace(hessian_u=None)

    def _look_ahead(
        self,
        parameters: list[Tensor],
        objective: Objective,
        split: Split,
        reduce: Any,
        settings: PenaltySettings,
    ) -> FlatGradient:
        """The gradient ahead. A step with penalised rows refreshes the running mean."""
        step = parameters, objective, split, reduce, settings
        mean, memory = self._mean(parameters), kept(self.state)
        known = memory.get("flatness_weight", 0.0), memory.get("distance", settings.rho)
        if mean and measures_distance(self.state):
            found = measured_lookahead(*step, mean, *known)
            keep_distance(self.state, found, self.args.penalty_every)
            flat, g = found.gradient, found.fresh
        else:
            flat, g = lookahead(*step, mean, *known)
        if split.penalised:
            memory["mean_norm"] = norm(self._running_mean(parameters, g))
        return flat

    def _mean(self, parameters: list[Tensor]) -> Mean | None:
        """The running mean as an earlier step has left it, None before there is one."""
        mean = self._stored(MEAN, parameters)
        return Mean(mean, kept(self.state)["mean_norm"]) if mean else None

    def _running_mean(self, parameters: list[Tensor], g: list[Tensor]) -> list[Tensor]:
        """grad E as a running mean over steps, with factor `penalty_momentum`."""
        keep, is_needed = self.args.penalty_momentum, self.flatness_method == "lookahead"
        if not (keep or is_needed) or not self.state.global_step:
            return g
        mean = next_mean(self.optimizer, parameters, g, keep)
        self.step_state.keep(MEAN, parameters, mean)
        return mean


def _places(parameters: list[Tensor], on: list[int] | None) -> Sequence[int]:
    """The indices of the parameters that the penalty covers."""
    return range(len(parameters)) if on is None else on


def _part(parameters: list[Tensor], on: list[int] | None) -> list[Tensor]:
    """The parameters that the penalty covers."""
    return [parameters[place] for place in _places(parameters, on)]
