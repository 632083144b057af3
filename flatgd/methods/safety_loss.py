"""Safety_loss: towards a clean expert, away from a toxic one (LOT, Khalatbari et al. 2023).

    a * L_LM + L_S                                                  (FlatGD's Eq. 1 with lambda = 0)
    L_S  = gamma * D(p, clean) - beta * D(p, toxic)                                          (Eq. 4)
    L_LM = -log p(reply), over safe replies                                                  (Eq. 3)

Means over the reply tokens of the whole batch, in bits, over safe and toxic rows alike. L_LM is a
mean over the safe rows' tokens. D is the Jensen-Shannon divergence, with which L_S lies in
[-beta, gamma]; the others (Appendix F names Bhattacharyya's) are ablations, and without bounds:
pushed away from the toxic expert, they can grow for ever.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn

from flatgd.families import Batch
from flatgd.flatness import Terms
from flatgd.losses import bhattacharyya_distance, js_divergence, kl_divergence
from flatgd.methods.base import EXPERTS, Method, Scored, Totals, likelihood_of_safe
from flatgd.models import in_vocabulary, reply_log_probs, reply_tokens

DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "js": js_divergence,
    "kl": kl_divergence,
    "kl_from_expert": lambda log_p, log_q: kl_divergence(log_q, log_p),
    "bhattacharyya": bhattacharyya_distance,
}


@dataclass
class SafetyLoss(Method):
    clean_expert: nn.Module = field(repr=False)
    toxic_expert: nn.Module = field(repr=False)
    lm_weight: float = 1.0
    attract_weight: float = 3.0
    repel_weight: float = 2.0
    penalise: str = "safety_loss"
    """E in ||grad E||: the safety loss, or the whole objective."""
    divergence: str = "js"

    name = "safety_loss"
    does = "drawn to an expert tuned on safe replies, pushed away from one tuned on toxic replies."
    needs = EXPERTS
    choices = MappingProxyType({"divergence": tuple(DIVERGENCES)})

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
        lm = likelihood_of_safe(log_p_NV, targets_N, is_safe_N, totals)
        divergence = DIVERGENCES[self.divergence]
        to_clean, to_toxic = (
            divergence(log_p_NV, in_vocabulary(batch[key], log_p_NV.shape[-1])).sum()
            / totals.tokens
            for key in ("clean_log_q", "toxic_log_q")
        )
        safety = self.attract_weight * to_clean - self.repel_weight * to_toxic
        figures = {"lm": lm, f"{self.divergence}_clean": to_clean}
        figures[f"{self.divergence}_toxic"] = to_toxic
        return Scored(
            self._split(safety, self.lm_weight * lm),
            {name: value.detach() for name, value in figures.items()},
        )

    def _split(self, safety: Tensor, rest: Tensor) -> Terms:
        if self.penalise == "objective":
            return Terms(penalised=safety + rest, rest=rest.new_zeros(()))
        return Terms(penalised=safety, rest=rest)
