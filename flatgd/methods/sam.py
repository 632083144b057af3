"""Sharpness-aware minimisation of Safety_loss's objective (Foret et al. 2021).

    the gradient of a * L_LM + L_S at theta + rho * g / ||g||, g that objective's gradient at theta

It is GNP on the whole objective with lambda = rho: g + rho * (g' - g) / rho = g'. So nothing is
computed here; the fields say so. rho 0.05 is the authors'; nets that are sharp want less.
"""

from dataclasses import dataclass
from typing import Any

from flatgd.methods.flatgd import FlatGD

RHO = 0.05
FIXED = {"penalise": "objective", "penalty_squared": False, "difference": "forward"}


@dataclass
class SAM(FlatGD):
    name = "sam"
    does = (
        "drawn to an expert tuned on safe replies, pushed away from one tuned on toxic replies, by "
        "sharpness-aware minimisation (Foret et al. 2021)."
    )

    @classmethod
    def preset(cls, settings: dict[str, Any]) -> dict[str, Any]:
        rho = settings.get("rho", RHO)
        kept = {k: v for k, v in settings.items() if k != "penalty_share"}
        return {**kept, **FIXED, "rho": rho, "flatness_weight": rho}
