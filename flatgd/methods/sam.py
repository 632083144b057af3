"""Sharpness-aware minimisation of Safety_loss's objective (Foret et al. 2021).

    the gradient of a * L_LM + L_S at theta + rho * g / ||g||, g that objective's gradient at theta

It equals GNP on the whole objective with lambda = rho: g + rho * (g' - g) / rho = g'. So this file
only sets fields and computes nothing. It has no warm-up. rho 0.05 is the authors' value; sharp nets
need less. The recipe's `train.rho` is ignored, because it is the length of FlatGD's finite
difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatgd.methods.flatgd import FlatGD

RHO = 0.05
FIXED = {
    "flatness_method": "finite_difference",
    "difference": "forward",
    "penalise": "objective",
    "penalty_squared": False,
    "penalty_warmup": 0.0,
    "penalty_every": 1,
    "penalty_fraction": 1.0,
    "penalty_momentum": 0.0,
    "penalty_layers": "all",
}


@dataclass
class SAM(FlatGD):
    name = "sam"
    summary = (
        "drawn to an expert tuned on safe replies, pushed away from one tuned on toxic replies, by "
        "sharpness-aware minimisation (Foret et al. 2021)."
    )
    rho_is_a_difference = False
    fixed = (*FIXED, "flatness_weight", "penalty_share")

    @classmethod
    def preset(cls, settings: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        rho = own.get("rho") or RHO
        kept = {k: v for k, v in settings.items() if k != "penalty_share"}
        return {**kept, **FIXED, "rho": rho, "flatness_weight": rho}
