"""Models and tokenizers: found, loaded, compared."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from flatgd.errors import ModelError
from flatgd.models.loading_report import refuse_incomplete
from flatgd.models.trust import Risk, hint, is_allowed

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ADAPTER = "adapter_config.json"
# peft saves an adapter without a tokenizer
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "spiece.model")
BASE_FROM_HERE = "base_from_here.txt"  # beside it: the relative path to a base that is a folder


def quiet_transformers() -> None:
    """No progress bars and no warnings of transformers'; flatgd shows its own."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def on_device(model: Any) -> Any:
    return model.to(DEVICE)


def on_meta(config: Any, kind: Any = None) -> Any:
    """A model of that configuration without weights. Raises ModelError if transformers has no
    such model."""
    kind = kind or (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)
    with torch.device("meta"):
        try:
            return kind.from_config(config, dtype=torch.float32)
        except ValueError:
            raise ModelError(
                f"transformers has no model of type {config.model_type!r} for this task"
            ) from None


def base_of(name: str | Path) -> str | None:
    """The base of the adapter in a folder; None if there is no adapter.

    A base that is a folder is looked up at its recorded path, and then beside an adapter that was
    moved together with it. Raises ModelError if there is no such folder, and for an adapter that
    stands on itself, directly or through other adapters.
    """
    base = _named_base(name)
    passed, place = {absolute_name(str(name))}, base
    while place is not None:
        if absolute_name(place) in passed:
            raise ModelError(
                f"{name}: its base {base} leads back to {place}. Write the model that the adapter "
                f"was trained on into {Path(name) / ADAPTER} as base_model_name_or_path"
            )
        passed.add(absolute_name(place))
        try:
            place = _named_base(place)
        except ModelError:  # it is reported when that base is loaded
            break
    return base


def _named_base(name: str | Path) -> str | None:
    path = Path(name) / ADAPTER
    if not path.is_file():
        return None
    try:
        named = json.loads(path.read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ModelError(f"{path} is not an adapter's configuration") from None
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{path} names no base; write the model that the adapter was trained on into it as "
            "base_model_name_or_path"
        )
    base = absolute_name(named)
    if Path(base).is_dir():
        return base
    way = path.with_name(BASE_FROM_HERE)
    if way.is_file() and (moved := (path.parent.resolve() / way.read_text().strip())).is_dir():
        return str(moved.resolve())
    if Path(base).is_absolute():
        raise ModelError(
            f"{name}: its base {base} does not exist; restore it, or write its present path into "
            f"{path} as base_model_name_or_path"
        )
    return base


def absolute_name(name: str) -> str:
    """The absolute path of a folder; a hub name stays unchanged."""
    return os.path.abspath(name) if Path(name).is_dir() else name


def load_config(name: str) -> Any:
    """A model's configuration, without weights; for an adapter that of its base. Raises ModelError
    if there is none at `name`."""
    if (base := base_of(name)) is not None:
        return load_config(base)
    _look_for(name)
    try:
        return _with_its_code(AutoConfig.from_pretrained, name)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model at {name!r}: {summarize_error(error)}") from None


def is_hub_name(name: str) -> bool:
    """Whether a name that is not a folder is a valid model name of the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_at_hand(name: str) -> bool:
    """Whether a model is available without network: as a folder, or in the hub's cache."""
    if Path(name).is_dir():
        return True
    cached = try_to_load_from_cache(name, "config.json") if is_hub_name(name) else None
    return isinstance(cached, str)


def _look_for(name: str) -> None:
    """Ask the hub once whether it has a model that is not at hand. Raises ModelError at once if it
    does not; transformers would retry many times."""
    if not Path(name).is_dir() and not is_hub_name(name):
        raise ModelError(f"there is no folder {name}, and it is not a model name of the hub")
    if is_offline_mode() or is_at_hand(name):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError:
        raise ModelError(
            f"there is no folder {name!r} and no such model on the hub; if the model is private, "
            "log in with `hf auth login`"
        ) from None
    except Exception as error:  # the hub's library may use any HTTP client
        raise ModelError(
            f"{name!r} is not in the cache, and the hub cannot be reached "
            f"({summarize_error(error)}); `flatgd check --offline` checks everything else"
        ) from None


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer at a folder or hub name; of an adapter without one, that of its base. Raises
    ModelError if there is none."""
    base = base_of(name)
    if base is not None and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        return load_tokenizer(base)
    try:
        tokenizer: PreTrainedTokenizerBase = _with_its_code(AutoTokenizer.from_pretrained, name)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no tokenizer at {name!r}: {summarize_error(error)}") from None
    return tokenizer


def load_model(name: str | Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model with weights in `dtype`, from safetensors and without remote code, unless
    `flatgd.models.trust` allows more. Raises ModelError for incomplete weights.

    Weights to be trained must be float32 whatever the file holds, because the perturbation of the
    second pass is smaller than the rounding of half precision.
    """
    config = load_config(str(name))
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return load_as(kind, str(name), dtype=dtype)


def load_as(
    kind: Any, name: str, needs: str = "model", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of one of transformers' auto classes, loaded as `load_model` does.

    `needs` says what is used of it: model, classifier or body, as in `refuse_incomplete`. Raises
    ModelError if the checkpoint lacks weights for that.
    """
    # without this, transformers asks a service of the hub to convert other weights to safetensors
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    how_to = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    how_to["ignore_mismatched_sizes"] = True  # into the report, which refuses them by name
    try:
        try:
            model, report = _with_its_code(kind.from_pretrained, name, **how_to)
        except OSError as error:
            if not _has_other_weights(name, error):
                raise
            if not is_allowed(Risk.PICKLE, name):
                raise ModelError(
                    f"cannot load {name!r}: it has no safetensors file; {hint(Risk.PICKLE)}"
                ) from None
            how_to["use_safetensors"] = False
            model, report = _with_its_code(kind.from_pretrained, name, **how_to)
    except ModelError:
        raise
    except Exception as error:  # a file that is not a model can fail in any way
        raise ModelError(f"cannot load {name!r}: {summarize_error(error)}") from None
    refuse_incomplete(name, model, report, needs)
    loaded: PreTrainedModel = model
    return loaded


def _has_other_weights(name: str, error: OSError) -> bool:
    """Whether weights exist in another form than safetensors."""
    if Path(name).is_dir():
        has_own = any(Path(name).glob("*.safetensors*"))
        return not has_own and any(Path(name).glob("pytorch_model*.bin"))
    return "cannot be loaded with `safetensors`" in str(error)


def _with_its_code(load: Callable[..., Any], name: str, **how_to: Any) -> Any:
    """Load with transformers, without the repository's own code; with it only if that is needed
    and allowed."""
    try:
        return load(name, trust_remote_code=False, **how_to)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
    if not is_allowed(Risk.REMOTE_CODE, name):
        raise ModelError(f"{name!r} needs code from its repository; {hint(Risk.REMOTE_CODE)}")
    try:
        return load(name, trust_remote_code=True, **how_to)
    except Exception as error:  # a stranger's code can fail in any way
        raise ModelError(
            f"{name!r}: the code of its repository failed: {summarize_error(error)}"
        ) from None


def summarize_error(error: Exception) -> str:
    """An error's first line, with its type unless that is a common one."""
    line = str(error).strip().split("\n")[0]
    is_plain = isinstance(error, OSError | ValueError | RuntimeError) and line
    return line if is_plain else f"{type(error).__name__} {line}".strip()


def check_token_map(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Raise ModelError unless both tokenizers give every token the same id. `names` are those of
    their models."""
    a, b = one.get_vocab(), other.get_vocab()
    if a == b:
        return
    token = min((t for t in a.keys() | b.keys() if a.get(t) != b.get(t)), key=lambda t: a.get(t, 0))
    raise ModelError(
        f"{names[0]} and {names[1]} do not share one token map: token {token!r} has id "
        f"{a.get(token)} in one and {b.get(token)} in the other. A divergence needs the same "
        "vocabulary in the same order; use experts tuned from the same backbone"
    )
