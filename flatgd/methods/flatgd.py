"""FlatGD: Safety_loss with a penalty on its gradient norm (Khalatbari et al. 2024, Eq. 1-2).

    J = a * L_LM + L_S + lambda * ||grad L_S||^2

The loss is that of Safety_loss. The trainer adds the penalty, which is in flatgd/flatness.
"""

from dataclasses import dataclass

from flatgd.methods.safety_loss import SafetyLoss


@dataclass
class FlatGD(SafetyLoss):
    name = "flatgd"
    summary = (
        "drawn to an expert tuned on safe replies, pushed away from one tuned on toxic replies, "
        "and steered to flat minima of that loss (Khalatbari, Hosseini, Sameti and Fung, TrustNLP "
        "2024)."
    )
    is_flat = True
