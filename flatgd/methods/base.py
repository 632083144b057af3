"""What the trainer asks of a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from flatgd.families import Batch
from flatgd.flatness import Terms


class Totals(NamedTuple):
    """Reply tokens of the *global* batch: the denominators of every mean."""

    tokens: float
    safe_tokens: float


class Scored(NamedTuple):
    """The terms of one micro-batch, and the figures to log: each a share of the batch's mean."""

    terms: Terms
    figures: dict[str, Tensor]


@dataclass
class Method(ABC):
    """A loss over micro-batches. Sums over tokens divided by `totals`, so that shares add up."""

    name: ClassVar[str]
    does: ClassVar[str]
    """For model cards: the model was ..."""
    trains_on_toxic: ClassVar[bool]
    """Whether toxic rows are of any use to the loss."""
    needs_experts: ClassVar[bool]
    is_flat: ClassVar[bool] = False
    """Whether the gradient norm of the penalised term is penalised."""

    @classmethod
    def from_config(cls, config: Any, experts: Sequence[nn.Module]) -> Self:
        """The method as a FlatGDConfig has it; `experts` are clean, toxic where it needs them."""
        return cls()

    def prepare(self, batch: Batch) -> Batch:
        """Add what does not depend on the policy: once a batch, not once a pass."""
        return batch

    @abstractmethod
    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        """The method's share of the objective on one prepared micro-batch."""
