"""A recipe's `train` as the configuration of one training."""

import dataclasses
from pathlib import Path
from typing import Any

from flatgd.config.recipe import Recipe
from flatgd.errors import FlatGDError, RecipeError, UnsupportedError, nearest
from flatgd.methods import Clean, Method, System
from flatgd.models.loading import summarize_error
from flatgd.pipeline.network_permissions import sending_faults
from flatgd.runtime import distributed
from flatgd.training import FlatGDConfig
from flatgd.training.config import CHECKPOINTING
from flatgd.training.trainer_components import sampling_faults

# Fields of FlatGDConfig that a recipe does not set under `train`
SET_ELSEWHERE = {
    "parallelism_config",  # a Python object
    *("output_dir", "seed", "max_history_tokens", "max_reply_tokens", "turn_separator"),
    *("template_date", "chat_template_kwargs"),
}


def training_config(
    recipe: Recipe, overrides: dict[str, Any], output: Path, kind: type[System] = Clean
) -> FlatGDConfig:
    """FlatGDConfig of the recipe's `train` with `overrides`, and what the method's kind asks for.
    Raises RecipeError for unknown keys, UnsupportedError for what cannot work or must not be
    sent."""
    known = {f.name for f in dataclasses.fields(FlatGDConfig) if f.init} - SET_ELSEWHERE
    options = kind.fields().keys() - known
    fields = {k: v for k, v in recipe.training_fields(overrides).items() if k not in options}
    if "activation_checkpointing" in fields:  # its name since transformers 5.23
        fields[CHECKPOINTING] = fields.pop("activation_checkpointing")
    near = sorted(known | options)
    faults = [f"train: unknown key {k!r}{nearest(k, near)}" for k in fields if k not in known]
    if faults:
        raise RecipeError("\n".join(faults))
    if issubclass(kind, Method):
        fields = kind.preset(fields, overrides)
    if (number := distributed.count()) > 1:
        fields["per_device_train_batch_size"] = _batch_share(fields, number)
    cache = fields.pop("expert_cache", None)
    if cache not in (None, "auto", "none", False):  # one for all methods of the recipe
        fields["expert_cache"] = str(recipe.output / cache) if isinstance(cache, str) else cache
    refused = list(sending_faults(fields))
    if refused:
        fields |= {"push_to_hub": False, "report_to": "none"}
    try:
        config = FlatGDConfig(
            output_dir=str(output),
            seed=recipe.seed,
            max_history_tokens=recipe.max_history_tokens,
            max_reply_tokens=recipe.max_reply_tokens,
            turn_separator=recipe.turn_separator,
            template_date=str(recipe.template_date),
            chat_template_kwargs=dict(recipe.chat_template_kwargs),
            **{"disable_tqdm": True, "use_cpu": distributed.are_on_cpu(), **fields},
        )
    except FlatGDError as error:
        raise UnsupportedError("\n".join([*refused, str(error)])) from None
    except Exception as error:  # whatever transformers makes of a value
        raise RecipeError("\n".join([*refused, f"train: {summarize_error(error)}"])) from None
    faults = [*refused, *sampling_faults(config)]
    if config.save_only_model and config.save_strategy != "no":
        faults.append(
            "save_only_model keeps weights alone, and an interrupted run needs whole checkpoints "
            "to resume; leave it out"
        )
    if faults:
        raise UnsupportedError("\n".join(faults))
    return config


def _batch_share(fields: dict[str, Any], number: int) -> int:
    """The batch size of each process. A recipe gives that of the whole batch."""
    whole = fields.get("per_device_train_batch_size", FlatGDConfig.per_device_train_batch_size)
    if not isinstance(whole, int) or whole % number:
        raise RecipeError(
            f"train: per_device_train_batch_size {whole!r} is the whole batch of a recipe and "
            f"cannot be shared out over {number} processes; make it a multiple of {number}"
        )
    return whole // number
