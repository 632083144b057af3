"""Safety_loss: towards a clean expert, away from a toxic one (LOT, Khalatbari et al. 2023).

    a * L_LM + L_S                                                  (FlatGD's Eq. 1 with lambda = 0)
    L_S  = gamma * JS(p, clean) - beta * JS(p, toxic)                                        (Eq. 4)
    L_LM = -log p(reply), over safe replies                                                  (Eq. 3)

Means over the reply tokens of the whole batch, JS in bits, over safe and toxic rows alike: so L_S
lies in [-beta, gamma]. L_LM is a mean over the safe rows' tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, distributed, nn

from flatgd.families import Batch
from flatgd.flatness import Terms
from flatgd.losses import js_divergence, negative_log_likelihood
from flatgd.methods.base import Method, Scored, Totals
from flatgd.models import in_vocabulary, reply_log_probs, reply_tokens


@dataclass
class SafetyLoss(Method):
    """`clean_expert` and `toxic_expert` are frozen here and put in eval mode."""

    clean_expert: nn.Module = field(repr=False)
    toxic_expert: nn.Module = field(repr=False)
    lm_weight: float = 1.0
    attract_weight: float = 3.0
    repel_weight: float = 2.0
    penalise_objective: bool = False
    """E in ||grad E||: the safety loss, or with this the whole objective."""

    name = "safety_loss"
    does = "drawn to an expert tuned on safe replies, pushed away from one tuned on toxic replies."
    trains_on_toxic = True
    needs_experts = True

    def __post_init__(self) -> None:
        for expert in (self.clean_expert, self.toxic_expert):
            expert.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, config: Any, experts: Sequence[nn.Module]) -> Self:
        clean, toxic = experts
        return cls(
            clean_expert=clean,
            toxic_expert=toxic,
            lm_weight=config.lm_weight,
            attract_weight=config.attract_weight,
            repel_weight=config.repel_weight,
            penalise_objective=config.penalise == "objective",
        )

    def prepare(self, batch: Batch) -> Batch:
        """Both experts' log-probabilities [N, V]: the same in every pass over this micro-batch."""
        with torch.no_grad():
            return {
                **batch,
                "clean_log_q": reply_log_probs(self.clean_expert, batch),
                "toxic_log_q": reply_log_probs(self.toxic_expert, batch),
            }

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        log_p_NV = reply_log_probs(policy, batch)
        lm = log_p_NV.new_zeros(())
        # no graph where no row is safe: one backward less; not where processes must keep step
        if is_safe_N.any() or distributed.is_initialized():
            nll_N = negative_log_likelihood(log_p_NV[is_safe_N], targets_N[is_safe_N])
            lm = nll_N.sum() / max(totals.safe_tokens, 1.0)
        js_clean, js_toxic = (
            js_divergence(log_p_NV, in_vocabulary(batch[key], log_p_NV.shape[-1])).sum()
            / totals.tokens
            for key in ("clean_log_q", "toxic_log_q")
        )
        safety = self.attract_weight * js_clean - self.repel_weight * js_toxic
        return Scored(
            self._split(safety, self.lm_weight * lm),
            {"lm": lm.detach(), "js_clean": js_clean.detach(), "js_toxic": js_toxic.detach()},
        )

    def _split(self, safety: Tensor, rest: Tensor) -> Terms:
        if self.penalise_objective:
            return Terms(penalised=safety + rest, rest=rest.new_zeros(()))
        return Terms(penalised=safety, rest=rest)
