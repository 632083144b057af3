"""Divergences between two next-token distributions; Jensen-Shannon's gradient in closed form.

Shapes: N reply tokens, V vocabulary.

    m  = (p + q) / 2
    JS = 1/2 KL(p || m) + 1/2 KL(q || m)                                    (Lin 1991, eq. 4.1)

With p = exp(l) and everything else held fixed, the derivative by the log-probability l_v is short:
differentiating KL(p || m) gives p_v (log p_v - log m_v + 1) minus the contribution through m, and
the contributions through m of both halves add up to p_v (p_v + q_v) / (2 m_v) = p_v. This leaves

    d JS / d l_v = 1/2 p_v log(p_v / m_v)

so the forward pass's intermediate values give the gradient, and nothing else of size V is kept.
"""

import math

import torch
from torch import Tensor

LN_2 = math.log(2.0)
LOG_ZERO = -1e4  # stands for -inf: its exponential is 0 in every precision


def js_divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """Jensen-Shannon divergence of each token; no reduction; bits, 0..1.

    `log_p_NV` are the policy's log-probabilities and take a gradient (twice differentiable);
    `log_q_NV` are an expert's and are constants. Both may contain -inf. Computed in at least
    float32. Returns a tensor of shape [N].

    >>> p = torch.tensor([[1.0, 0.0]]).log()
    >>> q = torch.tensor([[0.0, 1.0]]).log()
    >>> js_divergence(p, p).item(), js_divergence(p, q).item()
    (0.0, 1.0)
    """
    log_p_NV, log_q_NV = _alike(log_p_NV, log_q_NV.detach())
    divergence: Tensor = _JensenShannon.apply(log_p_NV, log_q_NV)
    return divergence


def kl_divergence(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """KL(p || q) of each token; no reduction; bits, >= 0, no upper bound. Shape [N].

    Both take a gradient. A q of 0 counts as e^-10000.

    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> round(kl_divergence(p, torch.tensor([[0.25, 0.75]]).log()).item(), 4)
    0.2075
    """
    log_p_NV, log_q_NV = _alike(log_p_NV, log_q_NV)
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1) / LN_2


def bhattacharyya_distance(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """-log2 of the sum over tokens of sqrt(p q) (Bhattacharyya 1943); no reduction; bits, >= 0, no
    upper bound. Shape [N]. Both take a gradient.

    >>> p = torch.tensor([[0.5, 0.5]]).log()
    >>> round(bhattacharyya_distance(p, torch.tensor([[1.0, 0.0]]).log()).item(), 4)
    0.5
    """
    log_p_NV, log_q_NV = _alike(log_p_NV, log_q_NV)
    return -((log_p_NV + log_q_NV) / 2).logsumexp(-1) / LN_2


def _alike(log_p_NV: Tensor, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the same precision, at least float32, and finite. Raises ValueError if shapes
    differ."""
    if log_p_NV.shape != log_q_NV.shape:
        raise ValueError(
            f"both need the same shape [tokens, vocabulary], got {tuple(log_p_NV.shape)} and "
            f"{tuple(log_q_NV.shape)}; check that policy and expert share one token map"
        )
    dtype = torch.promote_types(torch.promote_types(log_p_NV.dtype, log_q_NV.dtype), torch.float32)
    return log_p_NV.to(dtype).clamp(min=LOG_ZERO), log_q_NV.to(dtype).clamp(min=LOG_ZERO)


def js_and_slope(log_p_NV: Tensor, p_NV: Tensor, log_q_NV: Tensor) -> tuple[Tensor, Tensor]:
    """JS of each token in bits, [N], and 2 ln 2 times its derivative by `log_p_NV`, [N, V].

    Logarithms must be finite (LOG_ZERO for 0). It works in place where possible: at this size a
    pass over memory costs as much as an exponential.
    """
    q_NV = log_q_NV.exp()
    log_sum_NV = (p_NV + q_NV).clamp_(min=torch.finfo(p_NV.dtype).tiny).log_()
    slope_NV = torch.sub(log_p_NV, log_sum_NV).add_(LN_2).mul_(p_NV)
    other_NV = torch.sub(log_q_NV, log_sum_NV, out=log_sum_NV).add_(LN_2).mul_(q_NV)
    js_N = (slope_NV.sum(-1) + other_NV.sum(-1)).div_(2 * LN_2)
    return js_N.clamp_(0.0, 1.0), slope_NV  # rounding may step outside by an ulp


class _JensenShannon(torch.autograd.Function):
    @staticmethod
    def forward(ctx, log_p_NV, log_q_NV):  # type: ignore[no-untyped-def]
        js_N, slope_NV = js_and_slope(log_p_NV, log_p_NV.exp(), log_q_NV)
        ctx.save_for_backward(log_p_NV, log_q_NV, slope_NV)
        return js_N

    @staticmethod
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        log_p_NV, log_q_NV, slope_NV = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative, the slope must depend on l
            slope_NV = _slope(log_p_NV, log_q_NV)
        return (grad_N / (2 * LN_2))[:, None] * slope_NV, None


def _slope(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """The slope of `js_and_slope`, differentiable."""
    p_NV = log_p_NV.exp()
    tiny = torch.finfo(p_NV.dtype).tiny
    return p_NV * (log_p_NV + LN_2 - (p_NV + log_q_NV.exp()).clamp(min=tiny).log())
