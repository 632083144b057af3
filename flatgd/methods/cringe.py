"""CRINGE: contrast each toxic token with a likely alternative (Adolphs et al. 2023).

    (a * sum over safe rows' tokens of -log p(y_t)
     + weight * sum over toxic rows' tokens of CR) / tokens
    CR = -log(e^{s+} / (e^{s+} + e^{s-})) = log(1 + e^{s- - s+})

s- is the logit of the toxic reply's token; s+ is the logit of a token drawn from the softmax over
the `top_k` most likely other tokens. Means are over all reply tokens of the batch, safe and toxic,
as in ParlAI, whose defaults are weight 1 and top_k 1. Both logits take a gradient.

It trains once on the data's labels. The iterative version resumes from the trained model with its
own replies, judged and balanced: `cringe_iterative: {method: cringe, start: cringe, sampled_from:
cringe}`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from flatgd.config.options import option
from flatgd.losses import negative_log_likelihood
from flatgd.methods.base import LM_WEIGHT, Method, Scored, Totals, scored
from flatgd.models.encoding import Batch
from flatgd.models.heads import reply_log_probs, reply_tokens


@dataclass
class Cringe(Method):
    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    weight: float = field(
        default=1.0,
        metadata=option("Weight of CR. Higher is safer. ParlAI's default is 1.", ge=0),
    )
    top_k: int = field(
        default=1,
        metadata=option(
            "The positive token is drawn from this many most likely ones. ParlAI's default is 1.",
            ge=1,
            unit="tokens",
        ),
    )

    name = "cringe"
    summary = "fine-tuned to say safe replies and other words than those of toxic ones (CRINGE)."

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        log_p_NV = reply_log_probs(policy, batch)
        nll_N = negative_log_likelihood(log_p_NV[is_safe_N], targets_N[is_safe_N])
        contrast_N = cringe(log_p_NV[~is_safe_N], targets_N[~is_safe_N], self.top_k)
        lm, contrast = nll_N.sum() / totals.tokens, contrast_N.sum() / totals.tokens
        return scored(self.lm_weight * lm + self.weight * contrast, lm=lm, cringe=contrast)


def cringe(log_p_NV: Tensor, targets_N: Tensor, top_k: int) -> Tensor:
    """log(1 + e^{s- - s+}) of each target token; nats, >= 0. Shape [N].

    Log-probabilities replace logits, from which they differ by one constant for each row. Random
    numbers come from torch's default generator.
    """
    negative_N = log_p_NV.gather(-1, targets_N[:, None]).squeeze(-1)
    others_NV = log_p_NV.scatter(-1, targets_N[:, None], -torch.inf)
    best_NK = others_NV.topk(min(top_k, others_NV.shape[-1] - 1), dim=-1).values
    if top_k == 1 or len(best_NK) == 0:
        return softplus(negative_N - best_NK[:, 0])
    drawn_N1 = torch.multinomial(best_NK.detach().softmax(-1), 1)
    return softplus(negative_N - best_NK.gather(-1, drawn_N1).squeeze(-1))
