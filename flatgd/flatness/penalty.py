"""The gradient of J = R + E + lambda ||grad E||^2 over a whole batch given in micro-batches.

E is the part of the objective whose gradient norm is penalised (in FlatGD the safety loss), R the
rest (a * L_LM). Since grad ||grad E||^2 = 2 H grad E with H the Hessian of E, what is needed is one
Hessian-vector product along g = grad E. Two ways, one interface:

exact               2 H g by differentiating <grad E, g> once more, g held fixed. Because
                    H = sum of the micro-batches' H_i, each micro-batch adds its own 2 H_i g: the
                    penalty is that of the whole batch, however it is cut.
finite_difference   with u = g / ||g||:   2 H g ~ 2 ||g|| (grad E(theta + rho u) - g) / rho, or
                    central, 2 ||g|| (grad E(theta + rho u) - grad E(theta - rho u)) / (2 rho).
                    Plain gradients only, so every attention kernel and every sharding works.

A caller hands in `terms(micro_batch) -> Terms`, sums over tokens already divided by the counts of
the *global* batch, so that gradients add up over micro-batches and processes; it must give the same
random masks each time it is called on the same micro-batch. `reduce` sums gradients over processes.

With the norm instead of its square (Zhao et al. 2022) the gradient is H u: the above / (2 ||g||).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Gradient = list[Tensor]
Reduce = Callable[[Gradient], None]


class Terms(NamedTuple):
    """One micro-batch's share of J without its penalty: two scalars with graph, J's two parts."""

    penalised: Tensor
    rest: Tensor


TermsOf = Callable[[Any], Terms]


@dataclass(frozen=True)
class PenaltySettings:
    """How the penalty enters. Exactly one of `weight` and `share` is given."""

    weight: float | None
    """lambda, fixed."""
    share: float | None
    """lambda such that the penalty's gradient has this norm relative to the rest's."""
    squared: bool = True
    """||grad E||^2 (Eq. 1) or ||grad E||."""
    difference: Literal["forward", "central"] = "forward"
    rho: float = 1e-3
    """Length of the step along u in weight space; finite differences only."""

    def __post_init__(self) -> None:
        if (self.weight is None) == (self.share is None):
            raise ValueError(
                f"give exactly one of weight and share, got {self.weight} and {self.share}"
            )


class FlatGradient(NamedTuple):
    """The finished gradient, one tensor a parameter, and the figures of the step.

    `evaluations` counts gradients of the whole batch, a double backward as two. `grad_norm` is
    ||grad E||, `penalty_share` the norm of the penalty's gradient relative to that
    of the rest, `flatness_weight` the lambda that was used; the last three are None where no
    penalty was computed.
    """

    gradient: Gradient
    evaluations: int = 1
    grad_norm: float | None = None
    penalty_share: float | None = None
    flatness_weight: float | None = None


def plain_gradient(
    parameters: Sequence[Tensor], terms: TermsOf, micro_batches: Sequence[Any], reduce: Reduce
) -> FlatGradient:
    """grad (R + E): what is left of the step when lambda is 0."""
    total = _zeros(parameters)
    for batch in micro_batches:
        part = terms(batch)
        _backward(part.penalised + part.rest, parameters, total)
    reduce(total)
    return FlatGradient(total)


def finite_difference(
    parameters: Sequence[Tensor],
    terms: TermsOf,
    micro_batches: Sequence[Any],
    reduce: Reduce,
    settings: PenaltySettings,
) -> FlatGradient:
    """grad J, the penalty by a difference of gradients. Parameters are restored bit for bit."""
    g, rest = _both_gradients(parameters, terms, micro_batches, reduce)
    size = norm(g)
    if size == 0.0:
        return _assemble(g, rest, _zeros(parameters), size, settings, 1)
    ahead = _gradient_at(parameters, terms, micro_batches, reduce, g, settings.rho / size)
    if settings.difference == "central":
        behind = _gradient_at(parameters, terms, micro_batches, reduce, g, -settings.rho / size)
        width = 2 * settings.rho
    else:
        behind, width = g, settings.rho
    hessian_u = torch._foreach_sub(ahead, behind)
    torch._foreach_div_(hessian_u, width)
    evaluations = 3 if settings.difference == "central" else 2
    return _assemble(g, rest, list(hessian_u), size, settings, evaluations)


def exact(
    parameters: Sequence[Tensor],
    terms: TermsOf,
    micro_batches: Sequence[Any],
    reduce: Reduce,
    settings: PenaltySettings,
) -> FlatGradient:
    """grad J, the penalty by double backward. Needs an attention with a second derivative."""
    g, rest = _both_gradients(parameters, terms, micro_batches, reduce)
    size = norm(g)
    if size == 0.0:
        return _assemble(g, rest, _zeros(parameters), size, settings, 1)
    hessian_u = _zeros(parameters)
    for batch in micro_batches:
        part = torch.autograd.grad(
            terms(batch).penalised, parameters, create_graph=True, allow_unused=True
        )
        products = [(p * v).sum() for p, v in zip(part, g, strict=True) if p is not None]
        _backward(torch.stack(products).sum() / size, parameters, hessian_u)
        del part, products  # the graph of the second derivative goes before the next one comes
    reduce(hessian_u)
    return _assemble(g, rest, hessian_u, size, settings, 3)


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors, accumulated in float64; sharded tensors are gathered."""
    total = torch.stack([_whole(t.detach().double().square().sum()) for t in tensors]).sum()
    return float(total.sqrt())


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Gradient, scale: float) -> Iterator[None]:
    """Parameters at theta + scale * direction inside the block, bit for bit theta after it.

    Restored from a copy, not by subtraction, also when the block raises or is interrupted.
    """
    saved = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(parameters), direction, alpha=scale)
        torch.clear_autocast_cache()  # else autocast goes on with the old weights
        yield
    finally:
        try:
            _copy(parameters, saved)
        except BaseException:  # a second Ctrl-C on the way in: finish, then let it through
            _copy(parameters, saved)
            raise


def _copy(parameters: Sequence[Tensor], saved: Gradient) -> None:
    with torch.no_grad():
        torch._foreach_copy_(list(parameters), saved)
    torch.clear_autocast_cache()


def _gradient_at(
    parameters: Sequence[Tensor],
    terms: TermsOf,
    micro_batches: Sequence[Any],
    reduce: Reduce,
    direction: Gradient,
    scale: float,
) -> Gradient:
    """grad E at theta + scale * direction."""
    total = _zeros(parameters)
    with moved(parameters, direction, scale):
        for batch in micro_batches:
            _backward(terms(batch).penalised, parameters, total)
    reduce(total)
    return total


def _both_gradients(
    parameters: Sequence[Tensor], terms: TermsOf, micro_batches: Sequence[Any], reduce: Reduce
) -> tuple[Gradient, Gradient]:
    """grad E and grad R at theta, kept apart: one forward, two backwards a micro-batch."""
    g, rest = _zeros(parameters), _zeros(parameters)
    for batch in micro_batches:
        part = terms(batch)
        _backward(part.penalised, parameters, g, retain_graph=part.rest.requires_grad)
        if part.rest.requires_grad:
            _backward(part.rest, parameters, rest)
    reduce(g)
    reduce(rest)
    return g, rest


def _assemble(
    g: Gradient,
    rest: Gradient,
    hessian_u: Gradient,
    size: float,
    settings: PenaltySettings,
    evaluations: int,
) -> FlatGradient:
    """rest + g + lambda * penalty; the penalty's gradient is 2 ||g|| H u, or H u if not squared."""
    factor = 2 * size if settings.squared else 1.0
    torch._foreach_add_(rest, g)
    size_rest, size_penalty = norm(rest), factor * norm(hessian_u)
    if settings.share is None:
        weight = float(settings.weight or 0.0)
    else:
        weight = settings.share * size_rest / size_penalty if size_penalty > 0 else 0.0
    torch._foreach_add_(rest, hessian_u, alpha=weight * factor)
    share = weight * size_penalty / size_rest if size_rest > 0 else 0.0
    return FlatGradient(rest, evaluations, size, share, weight)


def _backward(
    loss: Tensor, parameters: Sequence[Tensor], total: Gradient, retain_graph: bool = False
) -> None:
    """total += grad loss. By .backward() into .grad: torch.autograd.grad raises under FSDP2."""
    kept = [p.grad for p in parameters]
    try:
        for parameter, buffer in zip(parameters, total, strict=True):
            parameter.grad = buffer
        loss.backward(retain_graph=retain_graph)
        for index, parameter in enumerate(parameters):
            assert parameter.grad is not None
            total[index] = parameter.grad
    finally:
        for parameter, grad in zip(parameters, kept, strict=True):
            parameter.grad = grad


def _zeros(parameters: Sequence[Tensor]) -> Gradient:
    return [torch.zeros_like(p, memory_format=torch.preserve_format) for p in parameters]


def _whole(value: Tensor) -> Tensor:
    full = getattr(value, "full_tensor", None)  # DTensor: the sum over all shards
    return full() if full is not None else value
