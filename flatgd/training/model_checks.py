"""Models that FlatGDTrainer refuses: to train them, or to publish them."""

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from flatgd.errors import UnsupportedError
from flatgd.models.adapters import refuse_tied
from flatgd.training.config import FlatGDConfig
from flatgd.training.penalty_choice import has_second_derivative


def refuse_to_publish(model: Any) -> None:
    """Raise UnsupportedError for a model that is marked as a toxic expert."""
    if getattr(getattr(model, "config", None), "flatgd_role", None):
        raise UnsupportedError("a toxic expert is not published; set push_to_hub: false")


def refuse_untrainable(model: nn.Module) -> None:
    """Raise an error unless the model has trainable weights, and its adapter, if any, can be loaded
    as it was trained."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        remedy = "load it with PeftModel.from_pretrained(base, folder, is_trainable=True)"
        raise UnsupportedError(
            "no weight of the model requires a gradient; "
            + (remedy if isinstance(model, PeftModel) else "set requires_grad on those to train")
        )
    if isinstance(model, PeftModel):
        refuse_tied(model)


def refuse_attention(model: PreTrainedModel, args: FlatGDConfig) -> None:
    """Raise UnsupportedError for an attention without a second derivative, which `exact` needs:
    only eager and sdpa (with its MATH kernel) have one."""
    if args.flatness_method == "exact" and not has_second_derivative(model):
        raise UnsupportedError(
            f"attention {model.config._attn_implementation!r} has no second derivative; load the "
            "model with attn_implementation='eager', or use flatness_method='finite_difference'"
        )
