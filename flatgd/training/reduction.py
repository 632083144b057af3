"""How gradients add up over processes: the `reduce` that the flatness functions are handed.

DDP reduces only the first backward after a forward, and silently not the second; so every pass runs
inside `no_sync` and the finished sums are reduced here. FSDP2 averages in each backward already, so
its sum is its average times the number of processes.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn

from flatgd.flatness.penalty import Reduce


class Reduction(NamedTuple):
    """`reduce` sums gradients in place over all processes; passes run inside `local()`."""

    reduce: Reduce
    local: Any  # () -> context manager


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
        distributed.all_reduce(tensor, distributed.ReduceOp.SUM)
