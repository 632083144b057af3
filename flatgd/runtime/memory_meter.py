"""Peak memory of a block of code, on Linux and with CUDA; elsewhere unknown."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """`megabytes` (2^20 bytes) of peak memory above what was in use before; None if unknown."""

    megabytes: float | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the block: resident memory of the process, or allocated memory of the GPU if there
    is one.

    On the CPU, freed memory is first returned to the system. The allocator may keep some of it,
    which then counts as in use before; so the figure is a lower bound.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # only glibc has it
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
    """Reset the process's peak memory to its present memory, in kB; None if not possible."""
    try:
        RESET.write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(key: str) -> float:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(key))
    return float(line.split()[1])
