"""LoRA adapters: a policy that trains only an adapter, and models that share one frozen base.

A folder with adapter_config.json contains an adapter in peft's own form, and a tokenizer. Plain
peft and plain transformers load it too.
"""

import copy
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from flatgd.errors import ModelError
from flatgd.models.loading import (
    ADAPTER,
    BASE_FROM_HERE,
    absolute_name,
    base_of,
    load_config,
    load_model,
    summarize_error,
)
from flatgd.models.loading_report import key_faults
from flatgd.models.trust import Risk, hint, is_allowed

ROLE = "flatgd_role.json"  # beside an adapter, which has no config.json
ROLE_FILES = ("config.json", ROLE, "flatgd.json")  # flatgd 0.1 marked adapters in flatgd.json


def with_adapter(model: PreTrainedModel, config: Any) -> Any:
    """`model` frozen, with a LoRA adapter (Hu et al. 2022) on the layers `config.lora_targets`.

    The adapter has no effect at first; its A matrices are drawn from config.seed. `config` is a
    FlatGDConfig. Raises ModelError for targets that the model lacks, or whose weights other layers
    share.
    """
    kind = TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM
    targets: Any = config.lora_targets
    lora = LoraConfig(
        task_type=kind,
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,
        target_modules=targets,
    )
    with torch.random.fork_rng(devices=[]), _quiet_peft():
        torch.manual_seed(config.seed)
        try:
            adapted: Any = get_peft_model(model, lora)
        except ValueError as error:
            raise ModelError(f"lora_targets {targets!r}: {error}") from None
    refuse_tied(adapted)
    _name_base(adapted)
    return adapted


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without peft's warnings of what is refused here, and of what it does itself."""
    with warnings.catch_warnings():
        for start in (
            "Model has `tie_word_embeddings",
            "Found missing adapter keys",
            "`is_gradient_checkpointing` is deprecated",
        ):
            warnings.filterwarnings("ignore", start)
        yield


def refuse_tied(model: PeftModel) -> None:
    """Raise ModelError if an adapter is on a weight that another layer shares, as a head does with
    its embedding: in training it changes one of them, and after merging both."""
    owners: dict[int, dict[int, str]] = defaultdict(dict)
    for name, module in model.get_base_model().named_modules(remove_duplicate=False):
        for tensor in module._parameters.values():
            if tensor is not None:
                place = tensor.data_ptr() or id(tensor)  # the meta device has no addresses
                owners[place].setdefault(id(module), _plain(name))
    for name, module in model.get_base_model().named_modules():
        for tensor in _adapted_weights(module):
            others = {*owners[tensor.data_ptr() or id(tensor)].values()} - {_plain(name)}
            if others:
                raise ModelError(
                    f"the adapter is on {_plain(name)}, which shares its weight with "
                    f"{', '.join(sorted(others))}: it would change one of them in training and all "
                    "of them once merged, so the loaded model would differ from the trained one. "
                    f"Remove {_plain(name).rpartition('.')[2]} from lora_targets (or "
                    "target_modules, modules_to_save)"
                )


def _adapted_weights(module: nn.Module) -> list[nn.Parameter]:
    """The base's weights below an adapter, or below a trained copy of a layer."""
    base: Any = None
    if isinstance(module, BaseTunerLayer):
        base = module.get_base_layer()
    elif isinstance(module, ModulesToSaveWrapper):
        base = module.original_module
    return [] if base is None else list(base.parameters())


def _plain(name: str) -> str:
    """A layer's name without the wrappers of peft."""
    inner = (".base_layer", ".original_module", ".token_adapter")
    for word in inner:
        name = name.replace(word, "")
    return name


def _name_base(model: PeftModel) -> None:
    """Make the adapter's configuration name its base by an absolute path."""
    for config in model.peft_config.values():
        name = config.base_model_name_or_path or model.get_base_model().name_or_path
        config.base_model_name_or_path = absolute_name(str(name)) if name else None


def save(model: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """Save a checkpoint that plain transformers loads: weights, or an adapter that names its base.

    An adapter's folder has no config.json, because transformers would look for weights beside it.
    The mark of a toxic expert therefore has its own file there. `weights` is the model's state if
    it was gathered from several processes.
    """
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder, state_dict=weights)
    else:  # with embedding layers peft would query the hub
        _name_base(model)
        model.save_pretrained(str(folder), save_embedding_layers=False, state_dict=weights)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty card
        base = base_of(folder)
        if base is not None and Path(base).is_dir():  # in case both folders are moved
            (folder / BASE_FROM_HERE).write_text(os.path.relpath(base, folder.resolve()) + "\n")
        mark(model, folder)


def mark(model: Any, folder: Path) -> None:
    """Write the role of an adapter's model, if it has one, beside the adapter."""
    if isinstance(model, PeftModel) and (role := getattr(model.config, "flatgd_role", None)):
        (folder / ROLE).write_text(json.dumps({"flatgd_role": role}, indent=2) + "\n")


def is_toxic_expert(folder: Path) -> bool:
    """Whether a checkpoint, or a model that it is an adapter on, is marked as one."""
    return role_of(folder) is not None


def role_of(folder: Path) -> str | None:
    """The role that a checkpoint is marked with; None without one. The mark is in config.json,
    beside an adapter, or on its base.

    Raises ModelError for a file that cannot be read, so that a mark is not lost.
    """
    seen: set[Path] = set()
    while folder.is_dir() and (here := folder.resolve()) not in seen:
        seen.add(here)
        for path in (folder / name for name in ROLE_FILES):
            role = _json_of(path).get("flatgd_role") if path.is_file() else None
            if role is not None:
                return str(role)
        folder = Path(base_of(folder) or "")
        if folder == Path():  # not an adapter
            break
    return None


def _json_of(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError for anything else."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {summarize_error(error)}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} cannot be read: expected an object")
    return values


def load(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model ready to use, an adapter merged into its base. Raises ModelError.

    In half precision an adapter is not merged but stays float32 beside its base: the sum of both
    would be rounded, and with it most of what the adapter has learnt.
    """
    base = base_of(name)
    if base is None:
        return load_model(name, dtype)
    adapted = _load_onto(load(base, dtype), Path(name))
    if dtype != torch.float32:
        adapted.requires_grad_(False)
        apart: PreTrainedModel = adapted
        return apart
    try:
        refuse_tied(adapted)
    except ModelError as error:
        raise ModelError(f"{name} cannot be merged into its base: {error}") from None
    merged: PreTrainedModel = adapted.merge_and_unload()
    merged.config = load_config(str(name))
    if role := role_of(Path(name)):
        merged.config.flatgd_role = role
    # an adapter that is trained on it names this as its base
    merged.name_or_path = absolute_name(str(name))
    return merged


def load_together(
    paths: Mapping[str, str],
    policy: nn.Module | None = None,
    dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> dict[str, Any]:
    """Frozen models by name, from `paths`, in their `dtypes`, else float32.

    Adapters on one base share its weights in memory, also with a frozen `policy` that is that base.
    Each model has modules of its own, so no adapter has to be switched on or off.
    """
    bases: dict[tuple[str, torch.dtype], nn.Module] = {}
    if policy is not None:
        own = next(policy.parameters()).dtype
        bases[absolute_name(str(policy.name_or_path)), own] = policy
    loaded: dict[str, Any] = {}
    for name, path in paths.items():
        base, dtype = base_of(path), dtypes.get(name, torch.float32)
        if base is None:
            loaded[name] = load_model(path, dtype)
            continue
        if (base, dtype) not in bases:
            bases[base, dtype] = load(base, dtype).requires_grad_(False)
        loaded[name] = _load_onto(share_weights(bases[base, dtype]), Path(path))
    return loaded


def share_weights(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares all parameters and buffers with `model`."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def _load_onto(base: Any, folder: Path) -> Any:
    kind = json.loads((folder / ADAPTER).read_text()).get("peft_type")
    if kind != "LORA":  # other types may load further files from any path
        raise ModelError(f"{folder}: its adapter is of type {kind!r}; only LORA can be loaded")
    if not (folder / "adapter_model.safetensors").is_file():
        if not (folder / "adapter_model.bin").is_file():
            raise ModelError(f"{folder} has an adapter's configuration but no weights")
        if not is_allowed(Risk.PICKLE, str(folder)):
            raise ModelError(f"{folder}: its adapter is not safetensors; {hint(Risk.PICKLE)}")
    try:
        with _quiet_peft():
            adapted: Any = PeftModel.from_pretrained(base, str(folder))
        # once more, because the first call does not return its report
        report = adapted.load_adapter(str(folder), adapted.active_adapter)
    except Exception as error:  # a file that is not an adapter can fail in any way
        raise ModelError(f"cannot load the adapter in {folder}: {summarize_error(error)}") from None
    if faults := key_faults(report.missing_keys, report.unexpected_keys):
        raise ModelError(
            f"{folder}: the adapter's weights do not fit its base: {faults}. Use the base that it "
            "was trained on, and save it with save_pretrained of an unwrapped PeftModel"
        )
    return adapted
