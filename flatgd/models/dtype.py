"""The precision in which frozen models are loaded, generate and score. Trained weights are always
float32 (flatgd/training/precision.py).

Rounding a fully tuned model to bfloat16 undoes much of its tuning, because the updates are smaller
than the rounding. Checkpoints of full trainings are float32, so `auto` leaves them float32; an
adapter stays float32 beside a base in bfloat16.
"""

import torch

from flatgd.models.loading import load_config

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def has_fast_bfloat16() -> bool:
    """Whether there is a GPU that computes in bfloat16. CPUs do too, and many are slower at it."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def dtype_for(chosen: str, own: torch.dtype | None) -> torch.dtype:
    """`chosen` (auto, float32, bfloat16) as a dtype. auto is the checkpoint's `own` on a GPU with
    bfloat16, which also stands for float16; elsewhere float32."""
    if chosen != "auto":
        return NAMES[chosen]
    is_half = own in (torch.bfloat16, torch.float16) and has_fast_bfloat16()
    return torch.bfloat16 if is_half else torch.float32


def checkpoint_dtype(name: str) -> torch.dtype | None:
    """The precision of a checkpoint by its config, for an adapter of its base's; None if the config
    does not say."""
    found = getattr(load_config(name), "dtype", None)
    return found if isinstance(found, torch.dtype) else None


def unless_float32(dtype: torch.dtype) -> list[str]:
    """Its name, for a fingerprint; nothing for float32, which runs from before the option had."""
    return [] if dtype == torch.float32 else [dtype_name(dtype)]


def dtype_name(dtype: torch.dtype) -> str:
    """As recipes and reports write it."""
    return str(dtype).removeprefix("torch.")
