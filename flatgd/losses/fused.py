"""Likelihood and both divergences from hidden states, without a full [tokens, vocabulary] tensor.

Shapes: N reply tokens, D width, V vocabulary, C tokens of one chunk.

    l   = log softmax(h W' + b)                                                            [C, V]
    L   = sum over safe tokens of -l[y]                       dL/dlogits = p - onehot(y)
    S   = sum_k w_k sum over tokens of JS(p, q_k)             dS/dlogits = s - p sum_v s_v
                                                              s = sum_k w_k/2 p log(p / m_k)

For each chunk, the logits are computed, turned into values and derivatives, multiplied back into
gradients of h, W and b, and freed. The derivatives are those of losses/divergence.py. The gradients
are computed in the forward pass and only scaled in the backward pass. There is no second
derivative.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from flatgd.losses.divergence import LN_2, js_and_slope

LogProbs = Callable[[slice], Tensor]
# elements of [C, V]: on the CPU what fits into its caches, on a GPU what keeps it busy
CHUNK = {"cpu": 2**20, "cuda": 2**27}
# tokens of a chunk; with fewer, adding to the head's gradient costs more than computing it
MIN_TOKENS = 128


class Head(NamedTuple):
    """The layer from hidden states to logits: `weight` [V, D], `bias` [V] or None."""

    weight: Tensor
    bias: Tensor | None = None


class Expert(NamedTuple):
    """`weight` of its divergence in S, and its log-probabilities [C, V] of a slice of tokens."""

    weight: float
    log_probs: LogProbs


class Fused(NamedTuple):
    """`safety` and `lm` are scalars with graph. With term weights, `safety` is the weighted sum and
    `lm` has no graph. `lm_sum` (nats) and `divergences` (one sum in bits for each expert) never
    have one."""

    safety: Tensor
    lm: Tensor
    lm_sum: Tensor
    divergences: Tensor


def fused_losses(
    states_ND: Tensor,
    head: Head,
    targets_N: Tensor,
    is_safe_N: Tensor,
    experts: Sequence[Expert],
    lm_weight: float,
    term_weights: tuple[float, float] | None = None,
    chunk_tokens: int | None = None,
) -> Fused:
    """S = sum of weight * JS in bits over all tokens and `lm_weight` * L in nats over safe ones.

    Their gradients are kept apart unless `term_weights` gives the factors for adding them up. They
    flow to the states, and to the head's weight and bias if those require a gradient. Computed in
    at least float32, matrix products in autocast's precision, or else in the states'.
    """
    states_ND = _as_autocast(states_ND)
    return Fused(
        *_FusedLosses.apply(
            states_ND, head.weight, head.bias, targets_N, is_safe_N, experts, lm_weight,
            term_weights, chunk_tokens or tokens_at_once(head.weight),
        )
    )  # fmt: skip


def _as_autocast(states_ND: Tensor) -> Tensor:
    """States as autocast would cast them for a linear layer; many models' last norm returns
    float32, whose products with a large head take most of a step on a GPU."""
    device = states_ND.device.type
    if not torch.is_autocast_enabled(device) or states_ND.dtype == torch.float64:
        return states_ND
    return states_ND.to(torch.get_autocast_dtype(device))


def head_log_probs(states_ND: Tensor, head: Head) -> Tensor:
    """log softmax(h W' + b) in at least float32, [N, V]."""
    bias = None if head.bias is None else head.bias.to(states_ND.dtype)
    return wide_log_softmax(linear(states_ND, head.weight.to(states_ND.dtype), bias))


def wide_log_softmax(logits_NV: Tensor) -> Tensor:
    """Log-probabilities in at least float32."""
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)


def tokens_at_once(weight_VD: Tensor) -> int:
    """The number of tokens of a chunk, for a head of this size on this device."""
    return max(MIN_TOKENS, CHUNK.get(weight_VD.device.type, CHUNK["cuda"]) // weight_VD.shape[0])


class _Sums:
    """Gradients of one loss, added up over chunks. For the head only if it requires one."""

    def __init__(self, states_ND: Tensor, weight_VD: Tensor | None, bias_V: Tensor | None):
        self.states_ND = torch.zeros_like(states_ND)
        self.weight_VD = None if weight_VD is None else torch.zeros_like(weight_VD)
        self.bias_V = None if bias_V is None else torch.zeros_like(bias_V)

    def add(self, slope_CV: Tensor, rows: slice | Tensor, states_CD: Tensor, head: Head) -> None:
        """Add a chunk: `slope_CV` is the derivative by the logits of the tokens `rows`, whose
        states are `states_CD`."""
        if self.bias_V is not None:
            self.bias_V += slope_CV.sum(0)
        slope_CV = slope_CV.to(states_CD.dtype)
        self.states_ND[rows] = slope_CV @ head.weight
        if self.weight_VD is None:
            return
        if self.weight_VD.dtype == slope_CV.dtype:
            self.weight_VD.addmm_(slope_CV.T, states_CD)
        else:
            self.weight_VD += slope_CV.T @ states_CD

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return self.states_ND, self.weight_VD, self.bias_V


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        states_ND,
        weight_VD,
        bias_V,
        targets_N,
        is_safe_N,
        experts,
        lm_weight,
        term_weights,
        chunk,
    ):
        wants = ctx.needs_input_grad
        dtype = torch.promote_types(states_ND.dtype, torch.float32)
        grown = weight_VD if wants[1] else None, bias_V if wants[2] else None
        sums = _Sums(states_ND, *grown)
        lm_sums = _Sums(states_ND, *grown) if term_weights is None else None
        of_safety, of_lm = (1.0, 1.0) if term_weights is None else term_weights
        of_lm *= lm_weight
        head = Head(weight_VD.to(states_ND.dtype), bias_V)
        lm = states_ND.new_zeros((), dtype=dtype)
        divergences = states_ND.new_zeros(len(experts), dtype=dtype)
        with torch.autocast(states_ND.device.type, enabled=False):
            for start in range(0, len(states_ND), chunk):
                part = slice(start, start + chunk)
                states_CD = states_ND[part]
                log_p_CV = head_log_probs(states_CD, head)
                p_CV = log_p_CV.exp()
                slope_CV = _safety_slope(log_p_CV, p_CV, experts, part, divergences)
                safe_S = is_safe_N[part].nonzero()[:, 0]
                targets_S = targets_N[part][safe_S]
                lm -= log_p_CV[safe_S, targets_S].sum()
                if lm_sums is None:
                    slope_CV.mul_(of_safety)
                    _add_lm_slope(slope_CV, p_CV, safe_S, targets_S, of_lm)
                elif len(safe_S):
                    lm_slope_SV = _lm_slope(p_CV, safe_S, targets_S, of_lm)
                    lm_sums.add(lm_slope_SV, safe_S + start, states_CD[safe_S], head)
                sums.add(slope_CV, part, states_CD, head)
        ctx.sums, ctx.lm_sums = sums, lm_sums
        weights = divergences.new_tensor([expert.weight for expert in experts])
        safety, scaled_lm = of_safety * (weights * divergences).sum(), of_lm * lm  # @ would round
        if term_weights is not None:
            safety, scaled_lm = safety + scaled_lm, scaled_lm.new_zeros(())
        constants = (lm, divergences) if term_weights is None else (scaled_lm, lm, divergences)
        ctx.mark_non_differentiable(*constants)
        ctx.set_materialize_grads(False)
        return safety, scaled_lm, lm, divergences

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_safety, grad_lm, *_):  # type: ignore[no-untyped-def]
        found: list[Tensor | None] = [None, None, None]
        for grad, sums in ((grad_safety, ctx.sums), (grad_lm, ctx.lm_sums)):
            if grad is None or sums is None or grad == 0:
                continue
            for place, tensor in enumerate(sums.tensors()):
                if tensor is not None:
                    # without a copy if nothing is scaled: a head's gradient is large
                    scaled = tensor if grad == 1 else tensor * grad.to(tensor.dtype)
                    before = found[place]
                    found[place] = scaled if before is None else before + scaled
        return (*found, None, None, None, None, None, None)


def _safety_slope(
    log_p_CV: Tensor, p_CV: Tensor, experts: Sequence[Expert], part: slice, divergences: Tensor
) -> Tensor:
    """dS/dlogits of a chunk; adds the chunk's divergences to `divergences`, in bits."""
    total_CV = torch.zeros_like(p_CV)
    for place, expert in enumerate(experts):
        js_C, slope_CV = js_and_slope(log_p_CV, p_CV, expert.log_probs(part))
        divergences[place] += js_C.sum()
        total_CV.add_(slope_CV, alpha=expert.weight / (2 * LN_2))
    return total_CV.addcmul_(p_CV, total_CV.sum(-1, keepdim=True), value=-1)


def _lm_slope(p_CV: Tensor, safe_S: Tensor, targets_S: Tensor, weight: float) -> Tensor:
    slope_SV = p_CV[safe_S].mul_(weight)
    slope_SV[torch.arange(len(safe_S), device=safe_S.device), targets_S] -= weight
    return slope_SV


def _add_lm_slope(
    slope_CV: Tensor, p_CV: Tensor, safe_S: Tensor, targets_S: Tensor, weight: float
) -> None:
    if weight and len(safe_S):
        slope_CV.index_add_(0, safe_S, _lm_slope(p_CV, safe_S, targets_S, weight))
