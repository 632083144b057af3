"""DExperts: the two experts' difference added to the logits while decoding (Liu et al. 2021).

    log p = log p_LM + strength * (log p_clean - log p_toxic), normalised again

The nucleus is taken from p_LM, before the shift. strength 2 is the authors' value for toxicity.
"""

from dataclasses import dataclass, field

from torch import Tensor

from flatgd.config.options import option
from flatgd.methods.experts_guide import ExpertGuide


@dataclass
class DExperts(ExpertGuide):
    strength: float = field(
        default=2.0,
        metadata=option(
            "Weight of the experts' difference while decoding. Higher is safer and less fluent. "
            "The authors' value for toxicity is 2.",
            ge=0,
        ),
    )

    name = "dexperts"
    summary = "steered while decoding by an expert tuned on safe replies and one on toxic replies."

    def shift(self, difference_RV: Tensor, evidence_R: Tensor, length_R: Tensor) -> Tensor:
        return difference_RV
