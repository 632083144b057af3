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

REFUSED = UnpicklingError  # torch.load raises it for anything but tensors


class Risk(StrEnum):
    """A risk that the user can allow."""

    PICKLE = "pickle"  # read by torch.load(weights_only=True), which builds tensors and no more
    REMOTE_CODE = "remote-code"  # runs whatever the repository holds
    SEND = "send"  # push_to_hub, and trackers that use the network


_allowed: set[Risk] = set()
_reported: set[tuple[Risk, str]] = set()


def allow(*risks: Risk) -> None:
    """Allow risks from now on, in this process."""
    _allowed.update(risks)


def forbid() -> None:
    """Allow nothing, as at the start of the process."""
    _allowed.clear()
    _reported.clear()


def is_allowed(risk: Risk, model: str) -> bool:
    """Whether `risk` is allowed. Reports on stderr, once, that `model` makes use of it."""
    if risk in _allowed and (risk, model) not in _reported:
        _reported.add((risk, model))
        print(f"flatgd: {model}: {risk} is allowed", file=sys.stderr)
    return risk in _allowed


def hint(risk: Risk) -> str:
    """What the user can do about a refusal."""
    return f"if you trust it, run flatgd --allow {risk} ..."
