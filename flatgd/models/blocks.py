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

    def is_embedding(module: nn.Module) -> bool:
        base = getattr(module, "base_layer", module)  # below an adapter
        return isinstance(base, nn.Embedding) or module is model.get_output_embeddings()

    excluded = {id(p) for m in model.modules() if is_embedding(m) for p in m.parameters()}
    return {id(p) for p in model.parameters()} - excluded


def _top(model: Any, count: int) -> set[int]:
    """Parameters of the decoder's last `count` blocks, by id."""
    lists = [m for m in model.get_decoder().modules() if isinstance(m, nn.ModuleList)]
    inner = {id(m) for one in lists for m in one.modules() if m is not one}
    outer = [one for one in lists if id(one) not in inner]  # a block of T5 has a list of its own
    blocks = max(outer, key=len, default=nn.ModuleList())
    if count > len(blocks):
        raise UnsupportedError(
            f"penalty_layers: {count}, but the model's decoder has {len(blocks)} blocks"
        )
    return {id(p) for block in blocks[-count:] for p in block.parameters()}
