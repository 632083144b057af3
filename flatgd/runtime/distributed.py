"""Several processes in one run, started by `accelerate launch` or torchrun; no effect with one.

Every process runs the same code. Training, generation and scoring are divided among them; the first
process does everything else, and writes files, while the others wait.

torch is imported only with several processes, because reports read a run's folder without it.
"""

import atexit
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")
PATIENCE = timedelta(hours=12)  # that the others wait for the first process


def count() -> int:
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_first() -> bool:
    return rank() == 0


def are_on_cpu() -> bool:
    """Whether several processes run without a GPU, which Trainer and accelerate need to know."""
    if count() == 1:
        return False
    import torch

    return not torch.cuda.is_available()


def meet() -> None:
    """Join the process group, if there are several processes."""
    if count() > 1:
        from accelerate import PartialState
        from torch import distributed

        if not distributed.is_initialized():
            PartialState(cpu=are_on_cpu(), timeout=PATIENCE)


def leave(status: int = 0) -> None:
    """Leave the process group, if this process is in one, and end the process with `status`.

    Python's own exit comes too early there: the group's threads still hold tensors, and one that
    asks for the interpreter while it shuts down aborts a process that has finished its work.
    """
    if "torch" not in sys.modules:
        return
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait() -> None:
    """Wait until all processes are here."""
    if count() > 1:
        from torch import distributed

        distributed.barrier()


def of_first(make: Callable[[], T]) -> T:
    """The result of `make` in the first process, on every process. If it raises an error there,
    every process raises it, so that none waits for the others."""
    if count() == 1:
        return make()
    from torch import distributed

    made: list[tuple[T | None, Exception | None]] = [(None, None)]
    if is_first():
        try:
            made = [(make(), None)]
        except Exception as error:
            made = [(None, error)]
    distributed.broadcast_object_list(made)
    result, raised = made[0]
    if raised is not None:
        raise raised
    return result  # type: ignore[return-value]


def gathered(part: T) -> list[T]:
    """Each process's part, on every process."""
    if count() == 1:
        return [part]
    from torch import distributed

    parts: list[T | None] = [None] * count()
    distributed.all_gather_object(parts, part)
    return parts  # type: ignore[return-value]
