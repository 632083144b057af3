"""Click: of two sampled replies, make the safe one more likely (Zheng et al. 2023).

    a * L_LM + weight * L_CL
    L_CL = max(0, margin + NLL(safe reply) - NLL(toxic reply))           mean over the pairs

NLL is the sum over a reply's tokens, in nats. L_LM is over the safe replies of the data. The pairs
are replies sampled from the policy to its training histories, labelled by the in-loop judge, which
reports nothing; flatgd/pipeline/model_samples.py builds them. weight 0.5 and margin 20 are the
authors' for BAD.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from flatgd.config.options import option
from flatgd.losses import negative_log_likelihood
from flatgd.methods.base import (
    LM_WEIGHT,
    Method,
    Scored,
    Totals,
    by_row,
    likelihood_of_safe,
    scored,
)
from flatgd.models.encoding import Batch
from flatgd.models.heads import reply_log_probs, reply_rows, reply_tokens


@dataclass
class Click(Method):
    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    weight: float = field(
        default=0.5,
        metadata=option(
            "Weight of L_CL. Higher is safer. The authors' value for BAD is 0.5.", ge=0
        ),
    )
    margin: float = field(
        default=20.0,
        metadata=option(
            "How much less likely the toxic reply of a pair must be before the pair has no more "
            "effect. The authors' value for BAD is 20.",
            ge=0,
            unit="nats",
        ),
    )

    name = "click"
    summary = "fine-tuned to find its own toxic replies less likely than its own safe ones (Click)."
    trains_on_toxic = False
    learns_from = "pairs"

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        rows_N, pair_B = reply_rows(batch), batch["pair"]
        log_p_NV = reply_log_probs(policy, batch)
        is_given_N = is_safe_N & (pair_B < 0)[rows_N]
        lm = likelihood_of_safe(log_p_NV, targets_N, is_given_N, totals)
        nll_B = by_row(negative_log_likelihood(log_p_NV, targets_N), rows_N, len(pair_B))
        toxic_P, safe_P = nll_B[pair_B >= 0].view(-1, 2).unbind(1)
        contrast = click(safe_P, toxic_P, self.margin).sum() / max(totals.pairs, 1.0)
        return scored(self.lm_weight * lm + self.weight * contrast, lm=lm, click=contrast)


def click(safe_P: Tensor, toxic_P: Tensor, margin: float) -> Tensor:
    """max(0, margin + NLL(safe) - NLL(toxic)) of each pair, no reduction; nats. Shape [P]."""
    return (margin + safe_P - toxic_P).clamp(min=0)
