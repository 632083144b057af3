"""Rows in batches of similar length, by the number of their tokens."""

from collections.abc import Iterator, Sequence

import torch

# tokens of a batch, padding included: what keeps the device busy and fits into its memory
READ_AT_ONCE = {"cpu": 2**11, "cuda": 2**14}
HELD_AT_ONCE = {"cpu": 2**14, "cuda": 2**16}  # in a key-value cache


def token_batches(
    lengths: Sequence[int], budget: int, most: int | None = None
) -> Iterator[list[int]]:
    """Row numbers in batches whose rows times their longest length is at most `budget`, from short
    to long. A batch has at least one row, and at most `most`.

    >>> list(token_batches([5, 1, 4, 2], 8))
    [[1, 3], [2], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        is_full = (len(batch) + 1) * lengths[row] > budget or len(batch) == most
        if batch and is_full:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def at_once(limits: dict[str, int], device: torch.device) -> int:
    """The limit of a device; other accelerators count as cuda."""
    return limits.get(device.type, limits["cuda"])
