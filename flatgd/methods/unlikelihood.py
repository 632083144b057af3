"""Token unlikelihood on toxic replies (Welleck et al. 2020; for dialogue Li et al. 2020).

    a * L_LM + weight * L_UL
    L_UL = -log(1 - p(y_t))        mean over the toxic rows' tokens
    L_LM                           mean over the safe rows' tokens

1 - p is clamped at 1e-5, below which there is no gradient. A token with probability 1 therefore
cannot be unlearned, a known limit of the method. weight 1 is ParlAI's.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from flatgd.config.options import option
from flatgd.losses import negative_log_likelihood
from flatgd.methods.base import LM_WEIGHT, Method, Scored, Totals, likelihood_of_safe, scored
from flatgd.models.encoding import Batch
from flatgd.models.heads import reply_log_probs, reply_tokens

FLOOR = 1e-5


@dataclass
class Unlikelihood(Method):
    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    weight: float = field(
        default=1.0,
        metadata=option("Weight of L_UL. Higher is safer. ParlAI's default is 1.", ge=0),
    )

    name = "unlikelihood"
    summary = "fine-tuned to say safe replies and, token by token, not to say toxic ones."

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        log_p_NV = reply_log_probs(policy, batch)
        lm = likelihood_of_safe(log_p_NV, targets_N, is_safe_N, totals)
        toxic_tokens = max(totals.tokens - totals.safe_tokens, 1.0)
        unlikely = unlikelihood(log_p_NV[~is_safe_N], targets_N[~is_safe_N]).sum() / toxic_tokens
        return scored(self.lm_weight * lm + self.weight * unlikely, lm=lm, unlikelihood=unlikely)


def unlikelihood(log_p_NV: Tensor, targets_N: Tensor) -> Tensor:
    """-log(1 - p) of each target token; no reduction; nats, 0..11.5. Shape [N]."""
    p_N = (-negative_log_likelihood(log_p_NV, targets_N)).exp()
    return -(1 - p_N).clamp(min=FLOOR).log()
