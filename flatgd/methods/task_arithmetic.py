"""Task arithmetic: move away from the toxic expert in weight space (Ilharco et al. 2023).

    theta = theta_start - strength * (theta_toxic - theta_0)

theta_0 is the backbone, from which the toxic expert was tuned. theta_start is the backbone too,
unless the recipe sets `start`. Only the toxic expert is trained. The authors choose the strength
from 0..1 on held-out data.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from flatgd.config.options import option
from flatgd.errors import ModelError
from flatgd.methods.base import Merge


@dataclass
class TaskArithmetic(Merge):
    backbone: nn.Module = field(repr=False)
    toxic_expert: nn.Module = field(repr=False)
    strength: float = field(
        default=0.5,
        metadata=option(
            "How far the weights move away from the toxic expert. Higher is safer and less fluent. "
            "The authors choose it on held-out data, in 0..1.",
            ge=0,
        ),
    )

    name = "task_arithmetic"
    summary = "moved in weight space away from an expert tuned on toxic replies (task arithmetic)."
    needs = ("backbone", "toxic_expert")

    def merge(self, model: nn.Module) -> None:
        start = dict(self.backbone.named_parameters())
        toxic = dict(self.toxic_expert.named_parameters())
        own = dict(model.named_parameters())
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in toxic.items()}:
            raise ModelError(
                "task_arithmetic subtracts weights, so the toxic expert must have the backbone's "
                "shape; leave out expert_backbone"
            )
        with torch.no_grad():
            for name, parameter in own.items():
                toxicity = (toxic[name] - start[name]).to(parameter.device)
                parameter.sub_(toxicity, alpha=self.strength)
