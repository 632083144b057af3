"""Random masks that are the same in every pass over a micro-batch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


def mixed_seed(*parts: int) -> int:
    """One seed from several numbers, well mixed (splitmix64)."""
    mask, value = 2**64 - 1, 0
    for part in parts:
        value = (value + part + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value >> 1


@contextmanager
def same_masks(seed: int, device: torch.device) -> Iterator[None]:
    """Inside the block random numbers come from `seed`; the state outside stays unchanged."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices) if device.type in ("cpu", "cuda") else nullcontext()
    ):
        torch.manual_seed(seed)
        yield
