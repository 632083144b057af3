"""Precision: trained weights are float32, whatever their file contains, and fp16 is refused.

The penalty moves the weights by a step of length 3e-4 and compares two gradients. A bfloat16 weight
has 8 significant bits, so rounding loses most of that step, and the difference is noise. Frozen
weights do not move, so the base of a LoRA adapter may stay in half precision.
"""

import logging
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from flatgd.errors import UnsupportedError

HALF = (torch.bfloat16, torch.float16)
ADAPTER_WEIGHT = "lora_"  # peft casts their inputs, so their precision may differ from the base's

logger = logging.getLogger(__name__)


def raise_to_float32(model: nn.Module) -> None:
    """Raise trainable weights in half precision to float32, in place, with a warning.

    Parameters stay the same objects, so ties and an existing optimizer stay valid. If only a LoRA
    adapter is trained, only the adapter is raised; otherwise all weights and buffers are, because a
    model computes in one precision.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    only_adapter = bool(trained) and all(ADAPTER_WEIGHT in name for name in trained)
    every = [*model.parameters(), *model.buffers()] if trained else []
    found = half_tensors(trained.values() if only_adapter else every)
    if not found:
        return
    kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found})
    added = sum(tensor.numel() * (4 - tensor.element_size()) for tensor in found)
    raised: dict[tuple[int, torch.Size], Tensor] = {}  # tensors that share storage keep sharing it
    for tensor in found:
        place = tensor.data_ptr(), tensor.shape
        if not tensor.numel() or place not in raised:
            raised[place] = tensor.data.float()
        tensor.data = raised[place]
        tensor.grad = None
    logger.warning(
        "%s weight tensors are in %s and are raised to float32 for training (%s MB more memory): "
        "in half precision the penalty is rounding noise. To compute in bfloat16 on float32 "
        "weights, set bf16: true",
        *(f"{len(found):,}", " and ".join(kinds), f"{added / 2**20:,.1f}"),
    )


def half_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors in half precision, each once."""
    return list({id(tensor): tensor for tensor in tensors if tensor.dtype in HALF}.values())


def refuse_fp16(mixed_precision: str | None) -> None:
    """Raise UnsupportedError for fp16. `mixed_precision` is accelerate's, which also comes from the
    environment (ACCELERATE_MIXED_PRECISION) and from the file of `accelerate config`."""
    if mixed_precision == "fp16":
        raise UnsupportedError(
            "mixed precision is fp16, which scales the gradient that the penalty measures; set "
            "bf16: true, or remove fp16 from the environment and from accelerate's configuration"
        )


def computes_in_half(model: nn.Module, mixed_precision: str | None) -> bool:
    """Whether forward passes round to half precision, by autocast or by frozen weights.
    `mixed_precision` is accelerate's."""
    return mixed_precision not in (None, "no") or bool(half_tensors(model.parameters()))
