"""NPO, negative preference optimisation: make toxic replies less likely than under the backbone.

    a * L_LM + weight * L_NPO
    L_NPO = 2 / beta * log(1 + (p(reply) / p_backbone(reply))^beta)      mean over the toxic rows

(Zhang et al. 2024.) It needs labels and no pairs. As beta goes to 0, its gradient becomes that of
plain ascent on the toxic replies' NLL; with beta > 0 it fades once a reply is unlikely. beta 0.1 is
the usual value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

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
class NPO(Method):
    backbone: nn.Module = field(repr=False)
    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    weight: float = field(default=1.0, metadata=option("Weight of L_NPO. Higher is safer.", ge=0))
    beta: float = field(
        default=0.1,
        metadata=option(
            "How soon the gradient fades once a toxic reply has become unlikely. Towards 0 it is "
            "plain gradient ascent.",
            gt=0,
        ),
    )

    name = "npo"
    summary = "fine-tuned to say safe replies and to say toxic ones less than it did before (NPO)."
    needs = ("backbone",)

    def prepare(self, parts: Sequence[Batch]) -> list[Batch]:
        with torch.no_grad():
            return [{**part, "reference": self._reference(part)} for part in parts]

    def _reference(self, batch: Batch) -> Tensor:
        """The backbone's negative log-likelihood of each reply, [B]."""
        nll_N = negative_log_likelihood(
            reply_log_probs(self.backbone, batch), reply_tokens(batch)[0]
        )
        return by_row(nll_N, reply_rows(batch), len(batch["is_safe"]))

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        targets_N, is_safe_N = reply_tokens(batch)
        log_p_NV = reply_log_probs(policy, batch)
        lm = likelihood_of_safe(log_p_NV, targets_N, is_safe_N, totals)
        nll_N = negative_log_likelihood(log_p_NV, targets_N)
        nll_B = by_row(nll_N, reply_rows(batch), len(batch["is_safe"]))
        toxic_B = ~batch["is_safe"]
        loss_B = npo(batch["reference"][toxic_B] - nll_B[toxic_B], self.beta)
        loss = loss_B.sum() / max(totals.toxic_rows, 1.0)
        return scored(self.lm_weight * lm + self.weight * loss, lm=lm, npo=loss)


def npo(log_ratio_B: Tensor, beta: float) -> Tensor:
    """2 / beta * log(1 + e^(beta * log ratio)) of each reply, no reduction; >= 0. Shape [B]."""
    return 2 / beta * softplus(beta * log_ratio_B)
