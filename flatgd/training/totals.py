"""The denominators of a step, counted over all processes before any micro-batch runs."""

import torch
from accelerate import Accelerator
from torch import Tensor

from flatgd.methods.base import Totals
from flatgd.models.encoding import IGNORE, Batch


def totals_of(batch: Batch, accelerator: Accelerator) -> Totals:
    """The denominators of the global batch, of which `batch` is this process's share."""
    tokens, safe, toxic_rows, pairs = accelerator.reduce(counts_of(batch), "sum").tolist()
    return Totals(max(tokens, 1.0), safe, toxic_rows, pairs)


def counts_of(batch: Batch) -> Tensor:
    """Counts of one batch, [4]: reply tokens, those of safe rows, toxic rows, pairs."""
    is_safe = batch["is_safe"]
    pair = batch.get("pair", torch.full_like(is_safe, -1, dtype=torch.long))
    is_single = pair < 0
    tokens = (batch["targets"] != IGNORE).sum(1) * is_single
    return torch.stack(
        [
            tokens.sum(),
            (tokens * is_safe).sum(),
            (is_single & ~is_safe).sum(),
            (~is_single).sum() // 2,
        ]
    ).float()
