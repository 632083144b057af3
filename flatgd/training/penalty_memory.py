"""Tensors that a training keeps of its penalty from one step to the next.

They are in the optimizer's state, so checkpoints and shards include them. They start with the
second step, because an optimizer initialises its state only where it finds none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from flatgd.errors import UnsupportedError

MEAN = "grad_safety"  # a running mean of grad E
PENALTY = "penalty_gradient"  # the penalty's gradient of an earlier step, for lambda = 1


def stored(optimizer: Any, parameters: Sequence[Tensor], key: str) -> list[Tensor] | None:
    """One tensor for each parameter as an earlier step has left it, None before there is one."""
    found = [optimizer.state.get(parameter, {}).get(key) for parameter in parameters]
    return None if any(tensor is None for tensor in found) else found


def next_mean(
    optimizer: Any, parameters: Sequence[Tensor], g: list[Tensor], keep: float
) -> list[Tensor]:
    """The exponential moving average with `g`; `keep` is the weight of the past."""
    past = stored(optimizer, parameters, MEAN) or g
    pairs = zip(past, g, strict=True)
    return [(mean * keep).add_(tensor, alpha=1 - keep) for mean, tensor in pairs]


def move_into(optimizer: Any, pending: Mapping[str, Mapping[Tensor, Tensor]]) -> None:
    """Move tensors, by key and parameter, into the optimizer's state.

    Raises UnsupportedError for a parameter that is not the optimizer's, as its state could not be
    saved.
    """
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, tensors in pending.items():
        if others := sum(id(parameter) not in own for parameter in tensors):
            raise UnsupportedError(
                f"the optimizer has no part in {others} of {len(tensors)} trained weights, so it "
                "cannot keep what the penalty needs in later steps; freeze those weights, or leave "
                "out lookahead, penalty_momentum and penalty_every"
            )
        for parameter, tensor in tensors.items():
            optimizer.state[parameter][key] = tensor


def forget(optimizer: Any) -> None:
    """Remove what an earlier training has kept."""
    for state in optimizer.state.values():
        for key in (MEAN, PENALTY):
            state.pop(key, None)
