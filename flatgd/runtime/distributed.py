"""Several processes at one job, as `accelerate launch` and torchrun start them; alone, nothing.

Every process walks through the same code. What can be shared out is (training, generation,
scoring); what cannot is done by the first while the others wait. Files are written by the first.

torch is imported only where there are several: reports read a run's folder without it.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # how long the others wait for the first


def count() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def are_on_cpu() -> bool:
    """Whether several work without a card, which Trainer and accelerate must be told."""
    if count() == 1:
        return False
    import torch

    return not torch.cuda.is_available()


def meet() -> None:
    """Meet the other processes, if there are any."""
    if count() > 1:
        from accelerate import PartialState
        from torch import distributed

        if not distributed.is_initialized():
            PartialState(cpu=are_on_cpu(), timeout=PATIENCE)


def leave() -> None:
    """Leave the process group, if this process is in one.

    A group that is still open when Python exits can abort the process after its work is done.
    """
    if "torch" in sys.modules:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        from torch import distributed

        distributed.barrier()


def of_first(make: Callable[[], T]) -> T:
    """What the first process makes, told to all."""
    if count() == 1:
        return make()
    from torch import distributed

    told: list[T | None] = [make() if is_first() else None]
    distributed.broadcast_object_list(told)
    return told[0]  # type: ignore[return-value]


def gathered(part: T) -> list[T]:
    """Each process's part, on every process."""
    if count() == 1:
        return [part]
    from torch import distributed

    parts: list[T | None] = [None] * count()
    distributed.all_gather_object(parts, part)
    return parts  # type: ignore[return-value]
