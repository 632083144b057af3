"""GeDi's weighting: the probability that the reply is safe with this token (Krause et al. 2021).

    log p = log p_LM + strength * log P(safe | y_1..y_t), normalised again
    P(safe | y_1..y_t) = sigmoid((log p_clean(y_1..y_t) - log p_toxic(y_1..y_t)) / t)

This is Bayes' rule with equal priors. The two experts replace GeDi's one class-conditional model;
the division by t is GeDi's. Its additional filter on P(safe) is left out. strength 30 is the
authors' value.
"""

from dataclasses import dataclass, field

from torch import Tensor
from torch.nn.functional import logsigmoid

from flatgd.config.options import option
from flatgd.methods.experts_guide import ExpertGuide


@dataclass
class GeDi(ExpertGuide):
    strength: float = field(
        default=30.0,
        metadata=option(
            "Weight of log P(safe) while decoding. Higher is safer and less fluent. The authors' "
            "value is 30.",
            ge=0,
        ),
    )

    name = "gedi"
    summary = "weighed while decoding by how safe each next word makes the reply look (GeDi)."

    def shift(self, difference_RV: Tensor, evidence_R: Tensor, length_R: Tensor) -> Tensor:
        return logsigmoid((evidence_R[:, None] + difference_RV) / length_R[:, None])
