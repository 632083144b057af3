"""The base classes of all systems: a training loss, a way of decoding, or a merge of weights.

A system's file contains its formula, source and defaults. Its dataclass fields are models (listed
in `needs`), fields of FlatGDConfig with the same name, or its own options. A recipe sets both kinds
of options in one place: `methods: {unlikelihood: {weight: 0.5, learning_rate: 1e-5}}`.
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
    """Counts of the *global* batch, the denominators of all means. Rows of a pair count in `pairs`
    and not in the other counts."""

    tokens: float
    safe_tokens: float
    toxic_rows: float = 0.0
    pairs: float = 0.0


class Scored(NamedTuple):
    """The terms of one micro-batch, and the figures to log. Each figure is this micro-batch's
    contribution to the batch's mean; `loss` is J without its penalty."""

    terms: Terms
    figures: dict[str, Tensor]


@dataclass
class System(ABC):
    """An entry of a recipe's `methods`."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """For model cards; it continues "The model was ..."."""
    needs: ClassVar[tuple[str, ...]] = ()
    """The models that it needs, among EXPERTS and `backbone`. Each is a field of that name."""
    needs_guide: ClassVar[bool] = False
    """Whether generation needs a guide, so that the checkpoint alone gives other replies."""

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
        """A system with `models`, `options` and, if it is trained, the fields of a FlatGDConfig."""
        values = {name: options.get(name, value) for name, value in cls.fields().items()}
        values |= {name: getattr(config, name) for name in values if hasattr(config, name)}
        return cls(**values, **{name: models[name] for name in cls.needs})

    def __post_init__(self) -> None:
        """Freeze the models and put them into eval mode.

        Raises UnsupportedError for an option out of range.
        """
        if faults := list(faults_of(self.options(), lambda name: getattr(self, name))):
            raise UnsupportedError("\n".join(faults))
        for model in self.models():
            model.requires_grad_(False).eval()

    def models(self) -> list[nn.Module]:
        """The models of `needs`, in that order."""
        return [getattr(self, name) for name in self.needs]


@dataclass
class Method(System):
    """A training loss over micro-batches. Sums over tokens are divided by `totals`, so that the
    terms of all micro-batches add up to those of the global batch."""

    trains_on_toxic: ClassVar[bool] = True
    """Whether the loss uses toxic rows."""
    is_flat: ClassVar[bool] = False
    """Whether training penalises the gradient norm of `Terms.penalised`."""
    rho_is_a_difference: ClassVar[bool] = True
    """Whether rho is the length of a finite difference, and not a part of the method's formula."""
    learns_from: ClassVar[Literal["replies", "pairs"]] = "replies"
    """pairs: besides safe replies, two sampled replies to one history, judged safe and toxic."""

    fixed: ClassVar[tuple[str, ...]] = ()
    """FlatGDConfig fields that the method fixes. A recipe cannot set them."""

    @classmethod
    def preset(cls, settings: dict[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """FlatGDConfig fields as the method needs them. `settings` are all fields that a recipe
        sets, `own` those that it sets for this method only."""
        return settings

    def begin(self, model: nn.Module) -> None:
        """Add the method's own modules to the policy, before the optimizer is built."""

    def finish(self, model: nn.Module, folder: Path) -> None:
        """Remove those modules from the policy and save them in the checkpoint's folder."""

    def prepare(self, parts: Sequence[Batch]) -> list[Batch]:
        """A step's micro-batches, with values that do not depend on the policy: computed once for
        both passes."""
        return list(parts)

    @abstractmethod
    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        """The objective's terms on one prepared micro-batch; twice differentiable."""

    def can_fuse(self, policy: nn.Module, batch: Batch) -> bool:
        """Whether `fused` can replace `terms` with this policy; tried on `batch`."""
        return False

    def fused(
        self,
        policy: nn.Module,
        batch: Batch,
        totals: Totals,
        term_weights: TermWeights | None = None,
    ) -> Scored:
        """`terms` without logits of the whole micro-batch; once differentiable. With
        `term_weights`, the penalised part is the weighted sum and the rest is 0."""
        raise NotImplementedError


@dataclass
class Merge(System):
    """New weights from other models' weights, without training."""

    @abstractmethod
    def merge(self, model: nn.Module) -> None:
        """Change the weights of `model` in place."""


def likelihood_of_safe(
    log_p_NV: Tensor, targets_N: Tensor, is_safe_N: Tensor, totals: Totals
) -> Tensor:
    """L_LM, the mean negative log-likelihood over the safe rows' tokens, in nats: this
    micro-batch's contribution."""
    if not has_likelihood(is_safe_N):
        return log_p_NV.new_zeros(())
    nll_N = negative_log_likelihood(log_p_NV[is_safe_N], targets_N[is_safe_N])
    return nll_N.sum() / max(totals.safe_tokens, 1.0)


def has_likelihood(is_safe_N: Tensor) -> bool:
    """Whether L_LM has a graph. Without safe rows it has none, which saves a backward pass; but
    several processes must all run the same passes."""
    return bool(is_safe_N.any()) or distributed.is_initialized()


def scored(rest: Tensor, **figures: Tensor) -> Scored:
    """The terms of a method without a penalised part. `figures` are logged beside `loss`."""
    terms = Terms(penalised=rest.new_zeros(()), rest=rest)
    return Scored(terms, {n: v.detach() for n, v in {"loss": rest, **figures}.items()})


def by_row(values_N: Tensor, rows_N: Tensor, rows: int) -> Tensor:
    """Sums of token values for each row. Shape [rows]."""
    return torch.zeros(rows, dtype=values_N.dtype, device=values_N.device).index_add(
        0, rows_N, values_N
    )
