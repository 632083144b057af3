"""What of a recipe's training would send something to the network: the hub, and trackers.

A recipe may come from someone else, so sending needs `flatgd --allow send`, which only the person
who starts the process can give.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from flatgd.models.trust import Risk, hint, is_allowed


def _env(name: str) -> str:
    return os.environ.get(name, "").lower()


def _is_local_uri(uri: str) -> bool:
    return not uri or uri.startswith(("file:", "sqlite:")) or "://" not in uri.partition("?")[0]


# How each tracker is known to stay on this machine. All others count as networked.
OFFLINE: dict[str, Callable[[], bool]] = {
    "tensorboard": lambda: True,
    "wandb": lambda: _env("WANDB_MODE") in ("offline", "dryrun", "disabled"),
    "mlflow": lambda: (
        _is_local_uri(_env("MLFLOW_TRACKING_URI"))
        and not _env("MLFLOW_TRACKING_URI").startswith("databricks")
    ),
    "neptune": lambda: _env("NEPTUNE_MODE") in ("offline", "debug"),
    "comet_ml": lambda: _env("COMET_START_ONLINE") in ("0", "false"),
    "clearml": lambda: _env("CLEARML_OFFLINE_MODE") in ("1", "true"),
    "swanlab": lambda: _env("SWANLAB_MODE") in ("local", "offline", "disabled"),
}


def sending_faults(fields: Mapping[str, Any]) -> Iterator[str]:
    """One line for each field of `train` that would send something without permission."""
    if fields.get("push_to_hub") and not is_allowed(Risk.SEND, "push_to_hub"):
        yield f"push_to_hub would upload the model, and a recipe cannot allow that; {_hint()}"
    for name in _networked(fields.get("report_to")):
        if not is_allowed(Risk.SEND, f"report_to: {name}"):
            offline = " or run the tracker offline (WANDB_MODE=offline)" if name == "wandb" else ""
            yield (
                f"report_to: {name} cannot be used: it sends to the network, and a recipe cannot "
                f"allow that; {_hint()}{offline}"
            )


def _hint() -> str:
    return hint(Risk.SEND).replace("if you trust it", "if you want it")


def _networked(given: Any) -> list[str]:
    """The trackers among a `report_to` that may use the network."""
    names = given if isinstance(given, list | tuple) else [given]
    if "all" in names:
        names = [*names, *get_available_reporting_integrations()]
    known = [name for name in names if isinstance(name, str) and name in INTEGRATION_TO_CALLBACK]
    return [name for name in dict.fromkeys(known) if not OFFLINE.get(name, lambda: False)()]
