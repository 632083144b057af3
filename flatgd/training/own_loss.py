"""The loss of any Trainer below the mixin, with the penalty.

    class FlatSFT(FlatnessMixin, trl.SFTTrainer): ...

E is that loss and R is 0: J = loss + lambda * ||grad loss||^2. Batches need `attention_mask` and
`labels`, with IGNORE at positions without a target; the loss must be a mean over labelled tokens.
TRL's DPO and KTO have a `completion_mask` instead, and a loss over pairs or over the whole batch:
such a batch is evaluated whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flatgd.errors import UnsupportedError
from flatgd.flatness import Terms
from flatgd.methods.base import Method, Scored, Totals
from flatgd.models.encoding import IGNORE, Batch

OURS = ("targets", "is_safe", "row", "pair")


@dataclass
class OwnLoss(Method):
    """`compute_loss(model, inputs)` returns the mean over a micro-batch's labelled tokens."""

    compute_loss: Callable[[nn.Module, dict[str, Any]], Tensor]

    name = "own_loss"
    summary = "trained by its Trainer's own loss."
    is_flat = True

    def terms(self, policy: nn.Module, batch: Batch, totals: Totals) -> Scored:
        inputs = {key: value for key, value in batch.items() if key not in OURS}
        share = (batch["targets"] != IGNORE).sum() / totals.tokens
        loss = share * self.compute_loss(policy, inputs)
        return Scored(Terms(loss, loss.new_zeros(())), {"loss": loss.detach()})


def with_targets(model: nn.Module, batch: Batch) -> Batch:
    """A Trainer's batch with the keys that the mixin reads: `targets` [B, T] and `is_safe` [B].

    Raises UnsupportedError for a batch without labels or attention_mask.
    """
    if "targets" in batch:
        return batch
    if _is_of_pairs(batch):
        one = torch.zeros_like(batch["completion_mask"][:, :1])
        return {**batch, "targets": one, "is_safe": torch.ones_like(one[:, 0]).bool()}
    if missing := [key for key in ("labels", "attention_mask") if key not in batch]:
        raise UnsupportedError(
            f"a batch needs {' and '.join(missing)}, but has only {', '.join(batch)}; let the data "
            "collator pad its rows (TRL: packing=False, padding_free=False)"
        )
    labels = batch["labels"]
    targets = labels.reshape(len(labels), -1)
    if _predicts_next(model):
        targets = torch.cat([targets[:, 1:], torch.full_like(targets[:, :1], IGNORE)], dim=1)
    return {**batch, "targets": targets, "is_safe": torch.ones_like(targets[:, 0]).bool()}


def stays_whole(batch: Batch, size: int | None, penalised: int) -> bool:
    """Whether a batch's loss is no sum over its rows, so that it is neither cut nor sorted.

    Raises UnsupportedError where such a batch would be cut into micro-batches of `size`, or where
    fewer than all of its rows would be penalised.
    """
    if not _is_of_pairs(batch):
        return False
    rows = len(batch["is_safe"])
    if min(size or rows, penalised) < rows:
        raise UnsupportedError(
            f"the loss of this Trainer is of the whole batch of {rows} rows; leave out "
            "micro_batch_size and penalty_fraction, or lower per_device_train_batch_size"
        )
    return True


def _is_of_pairs(batch: Batch) -> bool:
    """Whether it is a batch of TRL's preference trainers."""
    return "completion_mask" in batch and "labels" not in batch


def _predicts_next(model: nn.Module) -> bool:
    """Whether the model's loss shifts its labels by one, as in decoder-only models."""
    config: Any = getattr(model, "config", None)
    can_generate = getattr(model, "can_generate", lambda: False)
    return bool(can_generate()) and not getattr(config, "is_encoder_decoder", False)
