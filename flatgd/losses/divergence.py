"""Divergences between two next-token distributions; Jensen-Shannon's gradient in closed form.

Shapes: N reply tokens, V vocabulary.

    m  = (p + q) / 2
    JS = 1/2 KL(p || m) + 1/2 KL(q || m)                                    (Lin 1991, eq. 4.1)

With p = exp(l) and everything else held fixed, the derivative by the log-probability l_v collapses:
differentiating KL(p || m) gives p_v (log p_v - log m_v + 1) less the way through m, and the ways
through m of both halves add up to p_v (p_v + q_v) / (2 m_v) = p_v. What remains is

    d JS / d l_v = 1/2 p_v log(p_v / m_v)

so the value's own intermediates give the gradient, and nothing of size V is kept but that.
"""

import math

import torch
from torch import Tensor

LN_2 = math.log(2.0)
LOG_ZERO = -1e4  # stands for -inf: its exponential is 0 in every precision


def js_divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each token; no reduction; bits, 0..1.

    `log_p_NV` are the policy's log-probabilities and take a gradient (twice differentiable);
    `log_q_NV` are an expert's and are constants. Entries of -inf are fine in both. Computed in at
    least float32. Returns a tensor of shape [N].

    >>> p = torch.tensor([[1.0, 0.0]]).log()
    >>> q = torch.tensor([[0.0, 1.0]]).log()
    >>> js_divergence(p, p).item(), js_divergence(p, q).item()
    (0.0, 1.0)
    """
    log_p_NV, log_q_NV = _alike(log_p_NV, log_q_NV)
    divergence: Tensor = _JensenShannon.apply(log_p_NV, log_q_NV.detach())
    return divergence


def kl_divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) of each token; no reduction; bits, >= 0, no upper bound. Shape [N].

    Both take a gradient. A q of 0 counts as e^-10000.

    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> round(kl_divergence(p, torch.tensor([[0.25, 0.75]]).log()).item(), 4)
    0.2075
    """
    log_p_NV, log_q_NV = (x.clamp(min=LOG_ZERO) for x in _alike(log_p_NV, log_q_NV))
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1) / LN_2


def bhattacharyya_distance(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """-log2 of the sum over tokens of sqrt(p q) (Bhattacharyya 1943); no reduction; bits, >= 0, no
    upper bound. Shape [N]. Both take a gradient.

    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> round(bhattacharyya_distance(p, torch.tensor([[1.0, 0.0]]).log()).item(), 4)
    0.5
    """
    log_p_NV, log_q_NV = (x.clamp(min=LOG_ZERO) for x in _alike(log_p_NV, log_q_NV))
    return -((log_p_NV + log_q_NV) / 2).logsumexp(-1) / LN_2


def _alike(log_p_NV: Tensor, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one precision, at least float32. Raises ValueError unless of one shape."""
    if log_p_NV.shape != log_q_NV.shape:
        raise ValueError(
            f"both need the same [tokens, vocabulary]; got {tuple(log_p_NV.shape)} and "
            f"{tuple(log_q_NV.shape)}: do policy and expert share one token map?"
        )
    dtype = torch.promote_types(torch.promote_types(log_p_NV.dtype, log_q_NV.dtype), torch.float32)
    return log_p_NV.to(dtype), log_q_NV.to(dtype)


class _JensenShannon(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_p_NV, log_q_NV):  # type: ignore[no-untyped-def]
        p_NV, q_NV = log_p_NV.exp(), log_q_NV.exp()
        log_m_NV = _log_mean(p_NV, q_NV)
        slope_NV = _log_ratio(log_p_NV, log_m_NV).mul_(p_NV)
        js_N = slope_NV.sum(-1) + _log_ratio(log_q_NV, log_m_NV).mul_(q_NV).sum(-1)
        ctx.save_for_backward(log_p_NV, log_q_NV, slope_NV)
        return js_N.div_(2 * LN_2).clamp_(0.0, 1.0)  # rounding may step outside by an ulp

    @staticmethod
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        log_p_NV, log_q_NV, slope_NV = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted: the slope as a function of l
            p_NV = log_p_NV.exp()
            slope_NV = p_NV * _log_ratio(log_p_NV, _log_mean(p_NV, log_q_NV.exp()))
        return (grad_N / (2 * LN_2))[:, None] * slope_NV, None


def _log_mean(p_NV: Tensor, q_NV: Tensor) -> Tensor:
    """log((p + q) / 2), finite also where both are 0."""
    return (p_NV + q_NV).mul(0.5).clamp(min=torch.finfo(p_NV.dtype).tiny).log()


def _log_ratio(log_p_NV: Tensor, log_m_NV: Tensor) -> Tensor:
    """log(p / m), finite also where p = 0: to be multiplied by p."""
    return log_p_NV.clamp(min=LOG_ZERO) - log_m_NV
