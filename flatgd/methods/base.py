"""What every system of a comparison is: a loss to train with, a way to decode, or a merge.

A system's file holds its formula, its source and its own defaults. Its fields are either models
(named in `needs`), fields of FlatGDConfig of the same name, or options of its own, which a recipe
sets beside them: `methods: {unlikelihood: {weight: 0.5, learning_rate: 1e-5}}`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, distributed, nn

from flatgd.config.options import faults_of, option
from flatgd.errors import UnsupportedError
from flatgd.flatness import Terms, TermWeights
from flatgd.losses import negative_log_likelihood
from flatgd.models.encoding import Batch

LM_WEIGHT = option("Weight a of the likelihood of safe replies (Eq. 1). Table 5: 1.", ge=0)


class Totals(NamedTuple):
    """What the *global* batch holds: the denominators of every mean. Rows that form a pair count as
    pairs and not as tokens or rows."""

    tokens: float
    safe_tokens: float
    toxic_rows: float = 0.0
    pairs: float = 0.0


class Scored(NamedTuple):
    """The terms of one micro-batch, and the figures to log: each a share of the batch's mean,
    `loss` that of J without penalty."""

    terms: Terms
    figures: dict[str, Tensor]


@dataclass
class System(ABC):
    """Anything that can stand in a recipe's `methods`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """For model cards: the model was ..."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The models it is given, of EXPERTS and `backbone`; its fields of these names."""
    needs_guide: ClassVar[bool] = False
    """Whether it speaks as measured only with a guide: not from a checkpoint alone."""

    @classmethod
    def options(cls) -> dict[str, Field[Any]]:
        """Every field that is not a model. Its metadata holds an Option."""
        return {field.name: field for field in fields(cls) if field.name not in cls.needs}

    @classmethod
    def fields(cls) -> dict[str, Any]:
        """The default of each option."""
        return {
            name: None if field.default is MISSING else field.default
            for name, field in cls.options().items()
        }

    @classmethod
    def build(
        cls, models: Mapping[str, nn.Module], config: Any, options: Mapping[str, Any]
    ) -> Self:
        """The system as `options` and, where it is trained, a FlatGDConfig have it."""
        values = {name: options.get(name, value) for name, value in cls.fields().items()}
        values |= {name: getattr(config, name) for name in values if hasattr(config, name)}
        return cls(**values, **{name: models[name] for name in cls.needs})

    def __post_init__(self) -> None:
        """Freeze the models. Raises UnsupportedError for an option out of range."""
        if faults := list(faults_of(self.options(), lambda name: getattr(self, name))):
            raise UnsupportedError("\n".join(faults))
        for model in self.models():
            model.requires_grad_(False).eval()

    def models(self) -> list[nn.Module]:
        """The models it was given."""
        return [getattr(self, name) for name in self.needs]


@dataclass
class Method(System):
    """A loss over micro-batches. Sums over tokens divided by `totals`, so that shares add up."""

    trains_on_toxic: ClassVar[bool] = True
    """Whether toxic rows are of any use to the loss."""
    is_flat: ClassVar[bool] = False
    """Whether the gradient norm of the penalised term is penalised."""
    learns_from: ClassVar[Literal["replies", "pairs"]] = "replies"
    """pairs: sampled replies to one history, one judged safe and one toxic, beside safe replies."""

    fixed: ClassVar[tuple[str, ...]] = ()
    """FlatGDConfig fields that the method fixes. A recipe cannot set them."""

    @classmethod
    def preset(cls, settings: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """FlatGDConfig fields as the method needs them. `settings` are all fields that a recipe
        sets, `own` those that it sets for this method only."""
        return settings

    def begin(self, model: nn.Module) -> None:
        """Give the policy what it lacks, before the optimizer looks at it."""

    def finish(self, model: nn.Module, folder: Path) -> None:
        """Take it back and save it in the checkpoint's folder."""

    def prepare(self, parts: Sequence[Batch]) -> list[Batch]:
        """A step's micro-batches with what does not depend on the policy: once, not each pass."""
        return list(parts)

    @abstractmethod
    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        """The method's share of the objective on one prepared micro-batch; twice differentiable."""

    def can_fuse(self, policy: nn.Module, batch: Batch) -> bool:
        """Whether `fused` can stand for `terms` with this policy; tried on `batch`."""
        return False

    def fused(
        self,
        policy: nn.Module,
        batch: Batch,
        totals: Totals,
        term_weights: TermWeights | None = None,
    ) -> Scored:
        """`terms` without logits of the whole micro-batch, once differentiable. With
        `term_weights` the penalised part is that sum and the rest nothing."""
        raise NotImplementedError


@dataclass
class Merge(System):
    """New weights made of others', without training."""

    @abstractmethod
    def merge(self, model: nn.Module) -> None:
        """Change the weights of `model` in place."""


def likelihood_of_safe(
    log_p_NV: Tensor, targets_N: Tensor, is_safe_N: Tensor, totals: Totals
) -> Tensor:
    """L_LM: mean negative log-likelihood over the safe rows' tokens; this micro-batch's share."""
    if not has_likelihood(is_safe_N):
        return log_p_NV.new_zeros(())
    nll_N = negative_log_likelihood(log_p_NV[is_safe_N], targets_N[is_safe_N])
    return nll_N.sum() / max(totals.safe_tokens, 1.0)


def has_likelihood(is_safe_N: Tensor) -> bool:
    """Whether L_LM has a graph. Not where no row is safe: one backward less; but then too where
    processes must keep step."""
    return bool(is_safe_N.any()) or distributed.is_initialized()


def scored(rest: Tensor, **figures: Tensor) -> Scored:
    """Terms of a method without a penalised part."""
    terms = Terms(penalised=rest.new_zeros(()), rest=rest)
    return Scored(terms, {n: v.detach() for n, v in {"loss": rest, **figures}.items()})


def by_row(values_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Sums of token values over each row, [rows]."""
    return torch.zeros(rows, dtype=values_N.dtype, device=values_N.device).index_add(
        0, rows_N, values_N
    )
