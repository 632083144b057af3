"""GNP: FlatGD with a penalty on the gradient norm instead of its square (Zhao et al. 2022).

    J = a * L_LM + L_S + lambda * ||grad L_S||

An ablation: the paper's text has the "second norm", its Eq. 1 the square. The gradients of both
penalties point along H u and differ in length: 2 lambda ||grad L_S|| for the square, lambda for the
norm, so GNP's does not shrink with the gradient. `penalty_share` sets this length and would make
the two methods equal. Here lambda is therefore fixed, by default at the authors' 0.08 (their alpha
0.8 times r 0.1).
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
