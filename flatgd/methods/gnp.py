"""FlatGD with the gradient norm itself penalised, not its square (Zhao et al. 2022, GNP).

    J = a * L_LM + L_S + lambda * ||grad L_S||

An ablation: "second norm" in the paper's words, squared in its Eq. 1. Both have one direction, H u,
and differ in how long it is: 2 ||grad L_S|| lambda against lambda, so GNP does not let go where the
gradient becomes small. With `penalty_share`, which sets that length, they would be the same method;
so here lambda is fixed, by default the authors' 0.08 (their alpha 0.8 times r 0.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatgd.methods.flatgd import FlatGD

LAMBDA = 0.08


@dataclass
class GNP(FlatGD):
    name = "gnp"
    fixed = ("penalty_share", "penalty_squared")

    @classmethod
    def preset(cls, settings: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in settings.items() if k != "penalty_share"}
        return {"flatness_weight": LAMBDA, **kept, "penalty_squared": False}
