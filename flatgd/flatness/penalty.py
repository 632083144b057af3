"""The gradient of J = R + E + lambda ||grad E||^2 over a whole batch given in micro-batches.

E is the part of the objective whose gradient norm is penalised (in FlatGD the safety loss), R the
rest (a * L_LM). Since grad ||grad E||^2 = 2 H grad E with H the Hessian of E, the penalty needs one
Hessian-vector product along g = grad E. There are two ways to compute it, with one interface:

exact               2 H g by differentiating <grad E, g> once more, g held fixed. Because
                    H = sum of the micro-batches' H_i, each micro-batch adds its own 2 H_i g: the
                    penalty is that of the whole batch, however it is split.
finite_difference   with u = g / ||g||:   2 H g ~ 2 ||g|| (grad E(theta + rho u) - g) / rho, or
                    central, 2 ||g|| (grad E(theta + rho u) - grad E(theta - rho u)) / (2 rho).
                    It uses plain gradients only, so every attention kernel and sharding works.

Three options make this cheaper. `fast` differentiates everything except the subtracted g at
theta +- rho u, in one sum, so grad E and grad R need not be kept apart at theta. Its error is
O(rho), and the caller alternates the sign of rho between steps. `Split` computes the penalty on
some of the batch's micro-batches, so the first pass (fast) or the second (not fast) runs over those
alone. `reused_penalty` adds the penalty that an earlier step has computed, by whichever way.

The caller passes an Objective, whose sums over tokens are already divided by the counts of the
*global* batch, so gradients add up over micro-batches and processes. It must use the same random
masks each time it is called on the same micro-batch. `reduce` sums gradients over processes.

With the norm instead of its square (Zhao et al. 2022) the gradient is H u, the above / (2 ||g||).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from flatgd.flatness.objective import (
    FlatGradient,
    Gradient,
    Objective,
    PenaltySettings,
    Reduce,
    Smooth,
    Split,
    TermWeights,
)


def plain_gradient(
    parameters: Sequence[Tensor],
    objective: Objective,
    micro_batches: Sequence[Any],
    reduce: Reduce,
) -> FlatGradient:
    """grad (R + E), which is grad J with lambda = 0."""
    total = _zeros(parameters)
    _add_gradients(parameters, objective, micro_batches, TermWeights(), total)
    reduce(total)
    return FlatGradient(total)


def reused_penalty(
    parameters: Sequence[Tensor],
    objective: Objective,
    micro_batches: Sequence[Any],
    reduce: Reduce,
    settings: PenaltySettings,
    penalty: Gradient,
    covered: Sequence[int] | None = None,
) -> FlatGradient:
    """grad (R + E) and lambda times a `penalty` that an earlier step has computed."""
    flat = plain_gradient(parameters, objective, micro_batches, reduce)
    weight, share = _add_penalty(flat.gradient, penalty, settings, covered, 1.0)
    return flat._replace(penalty_share=share, flatness_weight=weight)


def penalised_gradient(
    parameters: Sequence[Tensor],
    objective: Objective,
    micro_batches: Sequence[Any],
    reduce: Reduce,
) -> Gradient:
    """grad E alone."""
    total = _zeros(parameters)
    _add_gradients(parameters, objective, micro_batches, TermWeights(1.0, 0.0), total)
    reduce(total)
    return total


def finite_difference(
    parameters: Sequence[Tensor],
    objective: Objective,
    batch: Split,
    reduce: Reduce,
    settings: PenaltySettings,
    smooth: Smooth = lambda gradient: gradient,
    covered: Sequence[int] | None = None,
) -> FlatGradient:
    """grad J, with the penalty as a difference of gradients. Parameters are restored bit for bit.

    `smooth` maps grad E to the gradient that defines u and ||grad E||, for example a running mean.
    `covered` are the indices of the parameters that the penalty covers: their gradient's norm is
    penalised, and the penalty's gradient moves them alone. None covers all.
    """
    g, rest = both_gradients(parameters, objective, batch, reduce)
    smoothed = smooth(g)
    places = range(len(parameters)) if covered is None else covered
    part, along = [parameters[i] for i in places], [smoothed[i] for i in places]
    size = norm(along)
    if size == 0.0:
        return _assemble(g, rest, _zeros(part), batch.rescale, settings, 1, 0.0, places)

    def gradient_at(rho: float) -> Gradient:
        with moved(part, along, rho / size), frozen_but(parameters, places):
            return penalised_gradient(part, objective, batch.penalised, reduce)

    ahead = gradient_at(settings.rho)
    central = settings.difference == "central"
    behind = gradient_at(-settings.rho) if central else [g[i] for i in places]
    hessian_u = torch._foreach_sub(ahead, behind)
    torch._foreach_mul_(hessian_u, batch.rescale / ((2 if central else 1) * settings.rho))
    evaluations = 1 + (2 if central else 1) / batch.rescale
    products = list(hessian_u)
    return _assemble(g, rest, products, batch.rescale, settings, evaluations, size, places)


def fast_difference(
    parameters: Sequence[Tensor],
    objective: Objective,
    batch: Split,
    reduce: Reduce,
    settings: PenaltySettings,
    weight: float | None,
) -> FlatGradient:
    """As `finite_difference` (forward), but with grad E and grad R at theta + rho u.

    `weight` is lambda if it is known beforehand; then one backward pass is enough. With None the
    gradients are kept apart, and lambda follows from `settings.share`.
    """
    g = penalised_gradient(parameters, objective, batch.penalised, reduce)
    size, evaluations = norm(g), 1 + 1 / batch.rescale
    if weight is not None and size > 0:
        factor = weight * settings.factor(batch.rescale * size) * batch.rescale / settings.rho
        total = _zeros(parameters)
        with moved(parameters, g, settings.rho / size):
            _add_gradients(
                parameters, objective, batch.penalised, TermWeights(1 + factor, 1.0), total
            )
            _add_gradients(parameters, objective, batch.others, TermWeights(), total)
        reduce(total)
        torch._foreach_add_(total, g, alpha=-factor)
        return FlatGradient(total, evaluations, batch.rescale * size, None, weight)
    with moved(parameters, g, settings.rho / size if size > 0 else 0.0):
        ahead, rest = both_gradients(parameters, objective, batch, reduce)
    hessian_u = list(torch._foreach_sub(ahead, g))
    torch._foreach_mul_(hessian_u, batch.rescale / settings.rho)
    return _assemble(ahead, rest, hessian_u, batch.rescale, settings, evaluations, size)


def exact(
    parameters: Sequence[Tensor],
    objective: Objective,
    batch: Split,
    reduce: Reduce,
    settings: PenaltySettings,
) -> FlatGradient:
    """grad J, with the penalty by double backward. The attention needs a second derivative."""
    g, rest = both_gradients(parameters, objective, batch, reduce)
    size = norm(g)
    if size == 0.0:
        return _assemble(g, rest, _zeros(parameters), batch.rescale, settings, 1)
    hessian_u = _zeros(parameters)
    for micro_batch in batch.penalised:
        part = torch.autograd.grad(
            objective.terms(micro_batch).penalised, parameters, create_graph=True, allow_unused=True
        )
        products = [(p * v).sum() for p, v in zip(part, g, strict=True) if p is not None]
        loss = torch.stack(products).sum() * (batch.rescale / size)
        _backward(loss, parameters, hessian_u)
        del part, products, loss  # frees the second derivative's graph before the next is built
    reduce(hessian_u)
    return _assemble(g, rest, hessian_u, batch.rescale, settings, 1 + 2 / batch.rescale)


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors, accumulated in float64; sharded tensors are gathered."""
    norms = [_whole(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) for t in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element of any tensor is NaN or infinite; sharded tensors are gathered."""
    norms = [_whole(torch.linalg.vector_norm(t.detach())) for t in tensors]  # a shard may be empty
    return bool(torch.stack(norms).isfinite().all())


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Gradient, scale: float) -> Iterator[None]:
    """Inside the block the parameters are theta + scale * direction; after it they are theta, bit
    for bit.

    They are restored from a copy, not by subtraction, also if the block raises or is interrupted.
    """
    saved = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(list(parameters), direction, alpha=scale)
        torch.clear_autocast_cache()  # autocast would otherwise use casts of the old weights
        yield
    finally:
        try:
            _copy(parameters, saved)
        except BaseException:  # another Ctrl-C while restoring: finish first, then raise it
            _copy(parameters, saved)
            raise


@contextmanager
def frozen_but(parameters: Sequence[Tensor], places: Sequence[int]) -> Iterator[None]:
    """Inside the block only the parameters at `places` have a gradient, so that a backward pass
    ends at the lowest of them."""
    others = [parameters[i] for i in sorted(set(range(len(parameters))) - set(places))]
    try:
        for parameter in others:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def _copy(parameters: Sequence[Tensor], saved: Gradient) -> None:
    with torch.no_grad():
        for parameter, value in zip(
            parameters, saved, strict=True
        ):  # DTensor has no _foreach_copy_
            parameter.copy_(value)
    torch.clear_autocast_cache()


def _add_gradients(
    parameters: Sequence[Tensor],
    objective: Objective,
    micro_batches: Sequence[Any],
    term_weights: TermWeights,
    total: Gradient,
) -> None:
    """total += the gradient of the weighted sum."""
    for batch in micro_batches:
        _backward(objective.sum(batch, term_weights), parameters, total)


def both_gradients(
    parameters: Sequence[Tensor], objective: Objective, batch: Split, reduce: Reduce
) -> tuple[Gradient, Gradient]:
    """grad E of the penalised micro-batches, and separately the rest of grad (E + R). Each
    penalised micro-batch takes one forward and two backward passes."""
    g, rest = _zeros(parameters), _zeros(parameters)
    for micro_batch in batch.penalised:
        part = objective.terms(micro_batch)
        _backward(part.penalised, parameters, g, retain_graph=part.rest.requires_grad)
        if part.rest.requires_grad:
            _backward(part.rest, parameters, rest)
        del part
    _add_gradients(parameters, objective, batch.others, TermWeights(), rest)
    reduce(g)
    reduce(rest)
    return g, rest


def _assemble(
    g: Gradient,
    rest: Gradient,
    hessian_u: Gradient,
    rescale: float,
    settings: PenaltySettings,
    evaluations: float,
    size: float | None = None,
    places: Sequence[int] | None = None,
) -> FlatGradient:
    """rest + g + lambda * (the penalty's gradient), which is 2 ||g|| H u, or H u if not squared.

    `size` replaces ||g|| if u comes from another gradient than g. `hessian_u` has one tensor for
    each parameter, or for those at `places`.
    """
    size = rescale * (norm(g) if size is None else size)
    factor = settings.factor(size)
    torch._foreach_add_(rest, g)
    weight, share = _add_penalty(rest, hessian_u, settings, places, factor)
    return FlatGradient(rest, evaluations, size, share, weight, hessian_u, factor)


def _add_penalty(
    total: Gradient,
    hessian_u: Gradient,
    settings: PenaltySettings,
    places: Sequence[int] | None,
    factor: float,
) -> tuple[float, float]:
    """total += lambda * factor * H u. Returns lambda and the penalty's share."""
    size_rest, size_penalty = norm(total), factor * norm(hessian_u)
    weight = float(settings.weight or 0.0)
    if settings.share is not None:
        weight = settings.share * size_rest / size_penalty if size_penalty > 0 else 0.0
    covered = total if places is None else [total[i] for i in places]
    torch._foreach_add_(covered, hessian_u, alpha=weight * factor)
    return weight, weight * size_penalty / size_rest if size_rest > 0 else 0.0


def _backward(
    loss: Tensor, parameters: Sequence[Tensor], total: Gradient, retain_graph: bool = False
) -> None:
    """total += grad loss. It uses .backward(), because torch.autograd.grad raises under FSDP2."""
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
