"""How flat a minimum is: gradient, Hessian spectrum, relative flatness, loss under perturbation.

A loss is a function `losses()` that yields its parts: one scalar with graph for each micro-batch,
whose sum is the loss. H is its Hessian over all `parameters` together. H v is exact, by double
backward, so the attention must have a second derivative (PyTorch's MATH kernel, or eager).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flatgd.flatness.objective import Gradient
from flatgd.flatness.penalty import moved, norm

Losses = Callable[[], Iterable[Tensor]]


class Mean(NamedTuple):
    """A mean over random probes and its standard error."""

    value: float
    error: float


def loss_value(losses: Losses) -> float:
    """The value of the loss."""
    with torch.no_grad():
        return sum(float(part) for part in losses())


def gradient(parameters: Sequence[Tensor], losses: Losses) -> Gradient:
    """grad of the loss."""
    return _gradient_of_sum(parameters, losses())


def hessian_vector(
    parameters: Sequence[Tensor], losses: Losses, vector: Sequence[Tensor]
) -> Gradient:
    """H v."""

    def along(part: Tensor) -> Tensor:
        """<grad of the part, v>, whose gradient is the part's H v."""
        grads = torch.autograd.grad(part, parameters, create_graph=True, allow_unused=True)
        known = [(g, v) for g, v in zip(grads, vector, strict=True) if g is not None]
        return torch.stack([(g * v).sum() for g, v in known]).sum()

    return _gradient_of_sum(parameters, map(along, losses()))


def _gradient_of_sum(parameters: Sequence[Tensor], scalars: Iterable[Tensor]) -> Gradient:
    """The gradient of the sum, scalar by scalar, so that only one graph is in memory."""
    total = [torch.zeros_like(p) for p in parameters]
    for scalar in scalars:
        grads = torch.autograd.grad(scalar, parameters, allow_unused=True)
        for buffer, grad in zip(total, grads, strict=True):
            if grad is not None:
                buffer += grad
    return total


def top_eigenvalue(
    parameters: Sequence[Tensor], losses: Losses, generator: torch.Generator, steps: int = 12
) -> float:
    """The largest eigenvalue of H, by Lanczos with full reorthogonalisation.

    Returns the largest Ritz value, a lower bound that converges to the eigenvalue as `steps` grows.
    """
    start = _gaussian(parameters, generator)
    basis = [_scaled(start, 1 / norm(start))]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for _ in range(min(steps, sum(p.numel() for p in parameters))):
        image = hessian_vector(parameters, losses, basis[-1])
        diagonal.append(_dot(image, basis[-1]))
        for _ in range(2):  # twice is enough (Parlett)
            for vector in basis:
                torch._foreach_add_(image, vector, alpha=-_dot(image, vector))
        size = norm(image)
        if size < 1e-10 * max(1.0, abs(diagonal[0])):
            break
        off_diagonal.append(size)
        basis.append(_scaled(image, 1 / size))
    count = len(diagonal)
    off = torch.tensor(off_diagonal[: count - 1], dtype=torch.float64)
    ritz = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    ritz = ritz + torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(ritz)[-1])


def trace(
    parameters: Sequence[Tensor], losses: Losses, generator: torch.Generator, probes: int = 10
) -> Mean:
    """tr H by Hutchinson's estimator, E[v^T H v] with random signs v."""

    def probe() -> float:
        signs = [
            torch.randint(0, 2, p.shape, generator=generator).to(p) * 2 - 1 for p in parameters
        ]
        return _dot(hessian_vector(parameters, losses, signs), signs)

    return _mean([probe() for _ in range(probes)])


def relative_flatness(
    parameters: Sequence[Tensor], losses: Losses, generator: torch.Generator, probes: int = 10
) -> Mean:
    """Relative flatness, summed over all weight matrices (Petzka et al. 2021, Definition 3).

        kappa = sum over matrices W, and over rows s, s' of W, of <w_s, w_s'> tr(H_ss')

    where H_ss' is the block of H between two rows. Unlike tr H, it does not change if one layer is
    scaled up and the next one down such that the function stays the same. No blocks of H are
    needed: for Z [in, in] of random signs, the matrix A = W Z has E[A_sj A_s'j'] = <w_s, w_s'> if
    j = j' and 0 otherwise, hence E[vec(A)^T H vec(A)] = kappa. The Z of different matrices are
    independent, so one product with H covers all of them. Vectors (biases, norms) are left out. A
    row belongs to one output, as in nn.Linear; GPT-2's Conv1D stores its matrices transposed.
    """

    def probe() -> float:
        direction = [torch.zeros_like(p) for p in parameters]
        for place, weights in enumerate(parameters):
            if weights.dim() == 2:
                width = weights.shape[1]
                signs = torch.randint(0, 2, (width, width), generator=generator)
                direction[place] = weights.detach() @ (signs.to(weights) * 2 - 1)
        return _dot(hessian_vector(parameters, losses, direction), direction)

    return _mean([probe() for _ in range(probes)])


def under_random(
    parameters: Sequence[Tensor],
    losses: Losses,
    radii: Sequence[float],
    generator: torch.Generator,
    draws: int = 3,
) -> list[Mean]:
    """The loss at theta + r d, averaged over random directions d, for each radius r.

    Each tensor of d has the norm of that tensor of theta (Li et al. 2018), so r is relative.
    """
    found: list[list[float]] = [[] for _ in radii]
    for _ in range(draws):
        direction = relative_direction(parameters, generator)
        for place, radius in enumerate(radii):
            with moved(parameters, direction, radius):
                found[place].append(loss_value(losses))
    return [_mean(values) for values in found]


def under_worst(
    parameters: Sequence[Tensor], losses: Losses, radii: Sequence[float], steps: int = 3
) -> list[float]:
    """The largest loss found while no weight moves by more than r times its size, for each radius
    r: a lower bound of the worst case.

    Projected sign-gradient ascent, scaled by each weight's size (the sharpness of Keskar et al.
    2017, whose box is relative too; scale-free like adaptive SAM, Kwon et al. 2021, with
    p = infinity). It uses a box, because in a ball a few weights may use up the whole radius.
    """
    sizes = [p.detach().abs() for p in parameters]
    found = []
    for radius in radii:
        offset = [torch.zeros_like(p) for p in parameters]
        best = -math.inf
        for step in range(steps):
            with moved(parameters, offset, 1.0):
                grads = gradient(parameters, losses)
            length = radius if step == 0 else radius / 2
            for move, grad, size in zip(offset, grads, sizes, strict=True):
                move.add_(grad.sign() * size, alpha=length)
                torch.clamp(move, -radius * size, radius * size, out=move)
            with moved(parameters, offset, 1.0):
                best = max(best, loss_value(losses))
        found.append(best)
    return found


def relative_direction(parameters: Sequence[Tensor], generator: torch.Generator) -> Gradient:
    """A random direction in which each tensor has the norm of that tensor of theta."""
    drawn = _gaussian(parameters, generator)
    return [
        d * (p.detach().norm() / d.norm().clamp(min=1e-12))
        for d, p in zip(drawn, parameters, strict=True)
    ]


def _gaussian(parameters: Sequence[Tensor], generator: torch.Generator) -> Gradient:
    return [torch.randn(p.shape, generator=generator).to(p) for p in parameters]


def _scaled(tensors: Gradient, factor: float) -> Gradient:
    return list(torch._foreach_mul(tensors, factor))


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    return float(
        torch.stack([(x.double() * y.double()).sum() for x, y in zip(a, b, strict=True)]).sum()
    )


def _mean(values: Sequence[float]) -> Mean:
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values)
    error = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else math.nan
    return Mean(mean, error)
