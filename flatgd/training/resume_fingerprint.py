"""The fingerprint of a training: everything that changes its result, as JSON values by name.

Each checkpoint's manifest contains it, and a training resumes only with an equal fingerprint. A
field of TrainingArguments counts unless it is listed here as one without effect, so fields that a
later transformers adds count too.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerControl
from transformers.trainer_callback import ExportableState

# speed, logging and what is kept: the weights stay the same, except for rounding
_NO_EFFECT = """
    micro_batch_size expert_cache fused_head snapshots
    output_dir run_name project logging_dir logging_strategy logging_steps logging_first_step
    logging_nan_inf_filter log_level log_level_replica log_on_each_node disable_tqdm report_to
    include_num_input_tokens_seen trackio_space_id trackio_bucket_id trackio_static_space_id
    save_only_model save_strategy save_steps save_on_each_node save_total_limit
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
    hub_always_push hub_revision resume_from_checkpoint restore_callback_states_from_checkpoint
    ignore_data_skip
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    torch_empty_cache_steps use_cache use_cpu no_cuda full_determinism dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp
    fsdp_config deepspeed local_rank debug skip_memory_metrics do_train do_eval do_predict
    per_device_eval_batch_size prediction_loss_only eval_do_concat_batches eval_use_gather_object
    eval_accumulation_steps include_for_metrics batch_eval_metrics
    per_device_train_batch_size auto_find_batch_size
"""
NO_EFFECT = set(_NO_EFFECT.split())
# these count only if an evaluation decides which weights are kept, or when the training ends
_OF_EVALUATION = """
    eval_strategy eval_steps eval_delay eval_on_start metric_for_best_model greater_is_better
    load_best_model_at_end bf16_full_eval fp16_full_eval
"""
OF_EVALUATION = set(_OF_EVALUATION.split())
LENGTH = {"max_steps", "num_train_epochs"}
# a difference here gives a warning: a longer training, say, is still the same training
REPORTED = LENGTH | {"device", "callbacks"}
# fields of a model's configuration that training does not read, or that Trainer itself changes
NOT_OF_MODEL = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
NOT_OF_MODEL |= {"flatgd_role", "problem_type", "id2label", "label2id"}
NOT_OF_ADAPTER = {"base_model_name_or_path", "inference_mode", "auto_mapping", "peft_version"}
NOT_OF_ADAPTER |= {"revision", "task_type"}


def settings_of(args: Any, evaluation_counts: bool) -> dict[str, Any]:
    """The fields of a FlatGDConfig that affect the result, by name."""
    left_out = NO_EFFECT if evaluation_counts else NO_EFFECT | OF_EVALUATION
    names = [field.name for field in fields(args) if field.name not in left_out]
    return {name: as_json(getattr(args, name)) for name in names}


def evaluation_counts(args: Any, callbacks: Iterable[Any]) -> bool:
    """Whether evaluations affect the resulting weights."""
    by_plateau = as_json(args.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy")
    return args.load_best_model_at_end or by_plateau or bool(_stateful(callbacks))


def method_of(method: Any) -> dict[str, Any]:
    """A method's name, class and options, without its models."""
    kind = type(method)
    options = {f"method.{name}": as_json(getattr(method, name)) for name in method.fields()}
    return {"method": method.name, "method.class": _name(kind), **options}


def model_of(model: Any) -> dict[str, Any]:
    """A policy's configuration, and its adapter's."""
    found: dict[str, Any] = {}
    for name, value in model.config.to_dict().items():
        if not name.startswith("_") and not name.endswith("_token_id") and name not in NOT_OF_MODEL:
            found[f"model.{name}"] = as_json(value)
    for adapter, lora in getattr(model, "peft_config", {}).items():
        for name, value in lora.to_dict().items():
            if name not in NOT_OF_ADAPTER:
                found[f"adapter.{adapter}.{name}"] = as_json(value)
    return found


def handed_in(optimizer: Any, scheduler: Any, made_by: Any) -> dict[str, Any]:
    """The class and hyperparameters of the caller's own optimizer and schedule. Call it before
    training, which changes both."""
    found: dict[str, Any] = {}
    if optimizer is not None:
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        found["optimizer"] = [_name(type(optimizer)), as_json(groups)]
    elif made_by is not None:
        found["optimizer"] = [_name(made_by[0]), as_json(made_by[1])]
    if scheduler is not None:
        kept = {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"}
        lambdas = as_json(getattr(scheduler, "lr_lambdas", []))
        found["lr_scheduler"] = [_name(type(scheduler)), as_json(kept), lambdas]
    return found


def callbacks_of(callbacks: Iterable[Any]) -> dict[str, Any]:
    """Callbacks with a state (early stopping), with their arguments. Of the caller's other
    callbacks only the classes are known."""
    kept = _stateful(callbacks)
    states = {_name(type(c)): as_json(c.state().get("args")) for c in kept}
    others = {_name(type(c)) for c in callbacks if not isinstance(c, ExportableState)}
    own = sorted(name for name in others if not name.startswith(("transformers.", "flatgd.")))
    return {**{f"callback {name}": args for name, args in states.items()}, "callbacks": own}


def _stateful(callbacks: Iterable[Any]) -> list[Any]:
    return [
        c for c in callbacks if isinstance(c, ExportableState) and not isinstance(c, TrainerControl)
    ]


def digest_of(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of named weights: names, shapes, dtypes and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        whole = getattr(tensor, "full_tensor", lambda tensor=tensor: tensor)()  # sharded
        bits = whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().data)
    return digest.hexdigest()


def frozen_weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The weights that are not trained. An adapter's checkpoints do not contain them."""
    return [(name, p) for name, p in model.named_parameters() if not p.requires_grad]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs, by name: "was X, now Y"."""
    now = json.loads(json.dumps(now))
    return {
        name: f"was {_shown(before, name)}, now {_shown(now, name)}"
        for name in {**before, **now}
        if _shown(before, name) != _shown(now, name)
    }


def _shown(fingerprint: Mapping[str, Any], name: str) -> str:
    return repr(fingerprint[name]) if name in fingerprint else "not recorded"


def as_json(value: Any) -> Any:
    """A setting as JSON that is equal in every process; for objects without such a form, the name
    of their class."""
    if isinstance(value, Enum):
        return as_json(value.value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in sorted(value.items(), key=str)}
    if isinstance(value, set | frozenset):
        return sorted(as_json(item) for item in value)
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Tensor):
        return digest_of([("", value)])[:12]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, partial):
        return [as_json(value.func), as_json(value.args), as_json(value.keywords)]
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    return _name(type(value))


def _name(kind: type | Callable[..., Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
