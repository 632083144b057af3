"""Task arithmetic: away from the toxic expert in weight space (Ilharco et al. 2023).

    theta = theta_0 - strength * (theta_toxic - theta_0)

No training beyond the toxic expert's. The authors choose the strength on held-out data, in 0..1.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from flatgd.errors import ModelError
from flatgd.methods.base import Merge


@dataclass
class TaskArithmetic(Merge):
    toxic_expert: nn.Module = field(repr=False)
    strength: float = 0.5

    name = "task_arithmetic"
    does = "moved in weight space away from an expert tuned on toxic replies (task arithmetic)."
    needs = ("toxic_expert",)

    def merge(self, model: nn.Module) -> None:
        toxic = dict(self.toxic_expert.named_parameters())
        own = dict(model.named_parameters())
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in toxic.items()}:
            raise ModelError(
                "task_arithmetic subtracts weights, so the toxic expert must be of the backbone's "
                "own shape; leave out expert_backbone"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                away = toxic[name].to(parameter.device) - parameter
                parameter.sub_(away, alpha=self.strength)
