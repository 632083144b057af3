"""What FlatnessMixin's step remembers: within a step, and from one step to the next."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from flatgd.flatness import FlatGradient
from flatgd.methods.base import Totals
from flatgd.training.penalty_memory import move_into


class StepState:
    """The memory of FlatnessMixin.

    `is_fused`: whether losses are computed in chunks; None until the first batch shows it.
    `has_no_second_derivative`: whether `flatness_method: auto` found an operation without one.
    `pending`: tensors for later steps, by key and parameter. They are computed in a step and moved
    into the optimizer's state once the step is complete, because a step that runs out of memory is
    repeated.
    `figures`: the figures of each step since the last log, by name.
    """

    def __init__(self) -> None:
        self.is_fused: bool | None = None
        self.has_no_second_derivative = False
        self.pending: dict[str, dict[Tensor, Tensor]] = {}
        self.figures: defaultdict[str, list[float]] = defaultdict(list)

    def keep(self, key: str, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Keep one tensor for each parameter until the step is complete."""
        self.pending[key] = dict(zip(parameters, tensors, strict=True))

    def move_into(self, optimizer: Any) -> None:
        """Move the pending tensors into the optimizer's state."""
        pending, self.pending = self.pending, {}
        if pending:
            move_into(optimizer, pending)

    def add_figures(
        self, flat: FlatGradient, figures: dict[str, float], totals: Totals, seconds: float
    ) -> None:
        """Keep one step's figures until the Trainer logs."""
        values = {
            **figures,
            "safety_grad_norm": flat.grad_norm,
            "penalty_share": flat.penalty_share,
            "flatness_weight": flat.flatness_weight,
            "gradient_evaluations": flat.evaluations,
            "tokens": totals.tokens,
            "seconds": seconds,
        }
        for name, value in values.items():
            if value is not None:
                self.figures[name].append(value)

    def take_figure_means(self) -> dict[str, float]:
        """The mean of each figure over the steps since the last log; they are forgotten here."""
        figures, self.figures = self.figures, defaultdict(list)
        return {name: sum(values) / len(values) for name, values in figures.items()}
