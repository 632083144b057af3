"""What a process may do when a recipe or a model of others asks for it. By default: nothing.

    flatgd --allow pickle run recipe.yaml        # loads weights that are not safetensors
    flatgd --allow remote-code run recipe.yaml   # runs an architecture that comes as code
    flatgd --allow send run recipe.yaml          # uploads models and figures as the recipe asks

A recipe cannot allow anything, because it may come from someone else. Each use is reported on
stderr.
"""

import sys
from enum import StrEnum
from pickle import UnpicklingError

REFUSED = UnpicklingError  # what torch.load raises for anything but tensors


class Risk(StrEnum):
    """What can be allowed."""

    PICKLE = "pickle"  # read by torch.load(weights_only=True), which builds tensors and no more
    REMOTE_CODE = "remote-code"  # runs whatever the repository holds
    SEND = "send"  # push_to_hub, and trackers that use the network


_allowed: set[Risk] = set()
_told: set[tuple[Risk, str]] = set()


def allow(*risks: Risk) -> None:
    """From here on, in this process."""
    _allowed.update(risks)


def forbid() -> None:
    """As it was at the beginning."""
    _allowed.clear()
    _told.clear()


def is_allowed(risk: Risk, model: str) -> bool:
    """Whether `model` may bring it. Tells on stderr, once, that it does."""
    if risk in _allowed and (risk, model) not in _told:
        _told.add((risk, model))
        print(f"flatgd: {model}: {risk} is allowed", file=sys.stderr)
    return risk in _allowed


def hint(risk: Risk) -> str:
    """What to do about a refusal."""
    return f"if you trust it: flatgd --allow {risk} ..."
