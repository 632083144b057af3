"""What the penalty's functions take and return: objective, batch, settings, gradient."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Gradient = list[Tensor]
Reduce = Callable[[Gradient], None]
Smooth = Callable[[Gradient], Gradient]


class Terms(NamedTuple):
    """One micro-batch's contribution to J without penalty: two scalars with graph, E and R."""

    penalised: Tensor
    rest: Tensor


class TermWeights(NamedTuple):
    """The factors with which E and R are added up before they are differentiated."""

    penalised: float = 1.0
    rest: float = 1.0


@dataclass(frozen=True)
class Objective:
    """`terms` of a micro-batch, and optionally a cheaper way to compute their weighted sum:
    `mixed`, a scalar with graph."""

    terms: Callable[[Any], Terms]
    mixed: Callable[[Any, TermWeights], Tensor] | None = None

    def sum(self, batch: Any, term_weights: TermWeights) -> Tensor:
        if self.mixed is not None:
            return self.mixed(batch, term_weights)
        penalised, rest = self.terms(batch)
        total = term_weights.penalised * penalised
        return total + term_weights.rest * rest if term_weights.rest else total


@dataclass(frozen=True)
class Split:
    """A batch in which only the `penalised` micro-batches have the penalty.

    `rescale` times their sum of E is the mean over them, because E is divided by the counts of the
    whole batch.
    """

    penalised: Sequence[Any]
    others: Sequence[Any] = ()
    rescale: float = 1.0


@dataclass(frozen=True)
class PenaltySettings:
    """The penalty's weight and form. Exactly one of `weight` and `share` is not None."""

    weight: float | None
    """lambda, fixed."""
    share: float | None
    """Norm of the penalty's gradient relative to that of the rest; lambda follows from it."""
    squared: bool = True
    """||grad E||^2 (Eq. 1) or ||grad E||."""
    difference: Literal["forward", "central"] = "forward"
    rho: float = 1e-3
    """Length of the step along u in weight space, for finite differences. A negative rho steps
    backward."""

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.share is None):
            raise ValueError(
                f"give exactly one of weight and share, got {self.weight} and {self.share}"
            )

    def factor(self, size: float) -> float:
        """The factor of H u besides lambda; `size` is ||grad E||."""
        return 2 * size if self.squared else 1.0


class FlatGradient(NamedTuple):
    """The finished gradient, one tensor for each parameter, and the figures of the step.

    `evaluations` counts gradients of the whole batch; a double backward counts as two. `grad_norm`
    is ||grad E|| at theta, `penalty_share` the norm of the penalty's gradient relative to that of
    the rest, and `flatness_weight` the lambda of this step. `hessian_u` is H u, one tensor for
    each covered parameter; `factor` times it is the penalty's gradient for lambda = 1. They are
    None if unknown.
    """

    gradient: Gradient
    evaluations: float = 1
    grad_norm: float | None = None
    penalty_share: float | None = None
    flatness_weight: float | None = None
    hessian_u: Gradient | None = None
    factor: float = 1.0

    @property
    def penalty(self) -> Gradient | None:
        """The penalty's gradient for lambda = 1, for later steps; a copy."""
        return self.hessian_u and list(torch._foreach_mul(self.hessian_u, self.factor))
