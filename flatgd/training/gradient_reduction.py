"""How gradients add up over processes: the `reduce` that the flatness functions are handed.

DDP reduces only the first backward after a forward, and silently not the second; so every pass runs
inside `no_sync` and the finished sums are reduced here. FSDP2 averages in each backward already, so
its sum is its average times the number of processes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from flatgd.errors import UnsupportedError
from flatgd.flatness.penalty import Reduce
from flatgd.runtime import distributed


class Reduction(NamedTuple):
    """`reduce` sums gradients in place over all processes; passes run inside `local()`."""

    reduce: Reduce
    local: Any  # () -> context manager


def check_strategy(accelerator: Accelerator, flatness_method: str) -> None:
    """Raises UnsupportedError for processes that cannot train together, however they were set up:
    by flags, environment or a file of `accelerate config`."""
    if distributed.count() != accelerator.num_processes:
        raise UnsupportedError(
            f"{distributed.count()} processes were started and this Trainer knows of "
            f"{accelerator.num_processes}; without a GPU give use_cpu=True"
        )
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UnsupportedError(f"{kind.value} keeps gradients to itself; use DDP or FSDP2")
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
