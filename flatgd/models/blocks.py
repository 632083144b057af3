"""Which trained weights belong to a model's blocks, and which to its embeddings and output head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flatgd.errors import UnsupportedError
from flatgd.models.heads import unwrapped


def covered(model: nn.Module, parameters: Sequence[Tensor], layers: str | int) -> list[int] | None:
    """Indices of the trained `parameters` that `layers` names; None means all of them.

    `blocks` is everything but embeddings and output head, a number the decoder's top blocks. Raises
    UnsupportedError if the model has fewer blocks, or no trained weight there.
    """
    if layers == "all":
        return None
    model = unwrapped(model)
    wanted = _outside(model) if layers == "blocks" else _top(model, int(layers))
    if not (found := [place for place, p in enumerate(parameters) if id(p) in wanted]):
        raise UnsupportedError(
            f"penalty_layers: {layers} covers none of the trained weights; leave it out"
        )
    return found


def _outside(model: Any) -> set[int]:
    """Parameters outside embeddings and output head, by id."""
    inside = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    heads = [*inside, model.get_output_embeddings()]
    excluded = {id(p) for module in heads if module is not None for p in module.parameters()}
    return {id(p) for p in model.parameters()} - excluded


def _top(model: Any, count: int) -> set[int]:
    """Parameters of the decoder's last `count` blocks, by id."""
    lists = [m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList)]
    blocks = max(lists, key=len, default=nn.ModuleList())
    if count > len(blocks):
        raise UnsupportedError(
            f"penalty_layers: {count}, but the model's decoder has {len(blocks)} blocks"
        )
    return {id(p) for block in blocks[-count:] for p in block.parameters()}
