"""The slow, obvious, float64 twin of every number. Plain loops and textbook formulas."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def kl_bits(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def js_bits(p: Sequence[float], q: Sequence[float]) -> float:
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl_bits(p, m) + kl_bits(q, m)) / 2


def js_rows(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    rows = zip(log_p_NV.double().exp().tolist(), log_q_NV.double().exp().tolist(), strict=True)
    return torch.tensor([js_bits(p, q) for p, q in rows], dtype=torch.float64)


def js_by_autograd(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """The definition written out, differentiable by autograd alone; no zeros allowed."""
    p, q = log_p_NV.exp(), log_q_NV.exp()
    m = (p + q) / 2
    halves = (p * (log_p_NV - m.log())).sum(-1) + (q * (log_q_NV - m.log())).sum(-1)
    return halves / 2 / math.log(2)


def penalised_gradient(
    parameters: Sequence[Tensor],
    penalised: Callable[[], Tensor],
    rest: Callable[[], Tensor],
    weight: float,
    squared: bool = True,
) -> list[Tensor]:
    """grad (R + E + weight * ||grad E||^2), one graph over the whole batch, nothing clever."""
    energy = penalised()
    g = torch.autograd.grad(energy, parameters, create_graph=True)
    norm_squared = sum((part * part).sum() for part in g)
    penalty = norm_squared if squared else norm_squared.sqrt()
    return list(torch.autograd.grad(rest() + energy + weight * penalty, parameters))


def distinct(replies: Sequence[Sequence[str]], n: int) -> float:
    seen, tokens = [], 0
    for reply in replies:
        tokens += len(reply)
        for start in range(len(reply) - n + 1):
            gram = list(reply[start : start + n])
            if gram not in seen:
                seen.append(gram)
    return len(seen) / tokens


def relative_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """||got - wanted|| / ||wanted|| over all tensors."""
    difference = sum(
        ((a.double() - b.double()) ** 2).sum() for a, b in zip(got, wanted, strict=True)
    )
    return float((difference / sum((b.double() ** 2).sum() for b in wanted)).sqrt())
