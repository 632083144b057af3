"""Sums of gradients over processes: the `reduce` argument of the flatness functions.

DDP reduces only the first backward pass after a forward pass, and silently skips the second. So
every pass runs inside `no_sync`, and the finished sums are reduced here. FSDP2 averages in every
backward pass, so the sum is its average times the number of processes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from flatgd.errors import UnsupportedError
from flatgd.flatness.objective import Reduce
from flatgd.runtime import distributed


class Reduction(NamedTuple):
    """`reduce` sums gradients over all processes, in place. Passes run inside `local()`."""

    reduce: Reduce
    local: Any  # () -> context manager


def check_strategy(accelerator: Accelerator, flatness_method: str) -> None:
    """Raise UnsupportedError for processes that cannot train together, whether flags, environment
    or the file of `accelerate config` set them up."""
    if distributed.count() != accelerator.num_processes:
        raise UnsupportedError(
            f"{distributed.count()} processes were started, but this Trainer knows of "
            f"{accelerator.num_processes}; without a GPU, set use_cpu=True"
        )
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UnsupportedError(f"{kind.value} hides the gradients; use DDP or FSDP2")
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UnsupportedError("FSDP 1 flattens the weights; set fsdp_version: 2")
    if kind == DistributedType.FSDP and flatness_method == "exact":
        raise UnsupportedError(
            "FSDP2 has no second derivative; use flatness_method: finite_difference"
        )


def largest(accelerator: Accelerator, number: int) -> int:
    """The largest of the processes' numbers."""
    mine = torch.tensor([number], device=accelerator.device)
    return int(accelerator.gather(mine).max())


def reduction_for(accelerator: Accelerator, model: nn.Module) -> Reduction:
    if accelerator.num_processes == 1:
        return Reduction(lambda gradient: None, nullcontext)
    if accelerator.is_fsdp2:
        count = float(accelerator.num_processes)
        return Reduction(lambda gradient: torch._foreach_mul_(gradient, count), nullcontext)

    def local() -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = accelerator.no_sync(model)
        return context

    return Reduction(_sum_over_processes, local)


def _sum_over_processes(gradient: list[Tensor]) -> None:
    for tensor in gradient:
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.SUM)
