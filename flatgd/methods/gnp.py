"""FlatGD with the gradient norm itself penalised, not its square (Zhao et al. 2022, GNP).

    J = a * L_LM + L_S + lambda * ||grad L_S||

An ablation: "second norm" in the paper's words, squared in its Eq. 1.
"""

from dataclasses import dataclass
from typing import Any

from flatgd.methods.flatgd import FlatGD


@dataclass
class GNP(FlatGD):
    name = "gnp"

    @classmethod
    def preset(cls, settings: dict[str, Any]) -> dict[str, Any]:
        return {"penalty_squared": False, **settings}
