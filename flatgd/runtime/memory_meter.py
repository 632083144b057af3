"""What a piece of work costs: its peak memory. Linux and CUDA; elsewhere unknown."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """`megabytes` of memory above what was in use before, at its highest; None where unknown."""

    megabytes: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block: the process's resident memory, or the GPU's where there is one.

    On the CPU what was freed before is given back first; what the system's allocator keeps all the
    same counts as in use before, so there the figure is a lower bound.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone
        ctypes.CDLL(None).malloc_trim(0)
    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield peak
        peak.megabytes = (torch.cuda.max_memory_allocated() - before) / 2**20
        return
    start = _reset()
    yield peak
    if start is not None:
        peak.megabytes = max(0.0, _status("VmHWM") - start) / 2**10


def _reset() -> float | None:
    """Make the process's high-water mark its present memory; kB, or None where that cannot be."""
    try:
        RESET.write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(key: str) -> float:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(key))
    return float(line.split()[1])
