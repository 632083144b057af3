"""Models and tokenizers: looked for, loaded, compared; and what a model says of a batch's replies.

Shapes: B rows, T reply positions, N real reply tokens of a batch, D width, V vocabulary.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flatgd.encoding import IGNORE
from flatgd.errors import ModelError
from flatgd.losses.divergence import LOG_ZERO
from flatgd.losses.fused import Head, head_log_probs
from flatgd.trust import Risk, how, is_allowed

BIAS = "final_logits_bias"  # a buffer [1, V] that BlenderBot and BART add after their head
ADAPTER = "adapter_config.json"
BASE_FROM_HERE = "base_from_here.txt"  # beside it: the way to a base that is a folder
FORWARD_KEYS = ("input_ids", "attention_mask", "decoder_input_ids")


def base_of(name: str | Path) -> str | None:
    """The base of the adapter in a folder, None where there is no adapter.

    A base that is a folder is found where it was, or, moved together with the adapter, where it
    now is.
    """
    path = Path(name) / ADAPTER
    if not path.is_file():
        return None
    try:
        base = whole(str(json.loads(path.read_text())["base_model_name_or_path"]))
    except (ValueError, KeyError):
        raise ModelError(f"{path} is no adapter's configuration") from None
    if Path(base).is_dir():
        return base
    way = path.with_name(BASE_FROM_HERE)
    if way.is_file() and (moved := (path.parent.resolve() / way.read_text().strip())).is_dir():
        return str(moved.resolve())
    if Path(base).is_absolute():
        raise ModelError(
            f"{name}: its base {base} is not there; put it back, or write where it is into "
            f"{path} as base_model_name_or_path"
        )
    return base


def whole(name: str) -> str:
    """A folder by its whole path, so that it is found from anywhere; a hub name as it is."""
    return os.path.abspath(name) if Path(name).is_dir() else name


def load_config(name: str) -> Any:
    """A model's configuration, no weights; for an adapter its base's. Raises ModelError when there
    is none at `name`."""
    if (base := base_of(name)) is not None:
        return load_config(base)
    _look_for(name)
    try:
        return _with_its_code(AutoConfig.from_pretrained, name)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model at {name!r}: {told(error)}") from None


def is_hub_name(name: str) -> bool:
    """Whether a name that is no folder could be a model's on the hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_at_hand(name: str) -> bool:
    """Whether a model can be looked at without network: a folder, or in the hub's cache."""
    if Path(name).is_dir():
        return True
    cached = try_to_load_from_cache(name, "config.json") if is_hub_name(name) else None
    return isinstance(cached, str)


def _look_for(name: str) -> None:
    """One question to the hub where the model is not at hand, told at once if the answer is no:
    transformers would try again and again."""
    if not Path(name).is_dir() and not is_hub_name(name):
        raise ModelError(f"no folder {name}")
    if is_offline_mode() or is_at_hand(name):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except RepositoryNotFoundError:
        raise ModelError(
            f"no model {name!r} on the hub, nor a folder of that name; if it is private, log in "
            "with `hf auth login`"
        ) from None
    except Exception as error:  # of whichever HTTP client the hub's library uses
        raise ModelError(
            f"{name!r} is not in the cache, and the hub cannot be asked ({told(error)}); "
            "`flatgd check --offline` checks all else"
        ) from None


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer at a folder or hub name. Raises ModelError when there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = _with_its_code(AutoTokenizer.from_pretrained, name)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no tokenizer at {name!r}: {told(error)}") from None
    return tokenizer


def load_model(name: str | Path) -> PreTrainedModel:
    """A model with float32 weights, from safetensors and without remote code unless `flatgd.trust`
    allows more.

    float32 whatever the file holds: in half precision the perturbation of the second pass vanishes.
    """
    config = load_config(str(name))
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return load_as(kind, str(name))


def load_as(kind: Any, name: str) -> PreTrainedModel:
    """A model of one of transformers' auto classes, loaded as `load_model` does."""
    model: PreTrainedModel
    # transformers would have a service of the hub turn other weights into safetensors, unasked
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    how_to = {"dtype": torch.float32, "use_safetensors": True}
    try:
        try:
            model = _with_its_code(kind.from_pretrained, name, **how_to)
        except OSError as error:
            if not _has_other_weights(name, error):
                raise
            if not is_allowed(Risk.PICKLE, name):
                raise ModelError(
                    f"cannot load {name!r}: it has no safetensors; {how(Risk.PICKLE)}"
                ) from None
            how_to["use_safetensors"] = False
            model = _with_its_code(kind.from_pretrained, name, **how_to)
    except ModelError:
        raise
    except Exception as error:  # whatever a file that is no model makes of it
        raise ModelError(f"cannot load {name!r}: {told(error)}") from None
    return model


def _has_other_weights(name: str, error: OSError) -> bool:
    """Whether what could not be found as safetensors is there in another form."""
    if Path(name).is_dir():
        has_own = any(Path(name).glob("*.safetensors*"))
        return not has_own and any(Path(name).glob("pytorch_model*.bin"))
    return "cannot be loaded with `safetensors`" in str(error)


def _with_its_code(load: Callable[..., Any], name: str, **how_to: Any) -> Any:
    """What transformers loads, without the repository's code; with it where that is needed and
    allowed."""
    try:
        return load(name, trust_remote_code=False, **how_to)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
    if not is_allowed(Risk.REMOTE_CODE, name):
        raise ModelError(f"{name!r} comes with code of its own; {how(Risk.REMOTE_CODE)}")
    try:
        return load(name, trust_remote_code=True, **how_to)
    except Exception as error:  # of code that is not ours
        raise ModelError(f"{name!r}: its own code failed: {told(error)}") from None


def told(error: Exception) -> str:
    """An error's first line, and its kind where that does not speak for itself."""
    line = str(error).strip().split("\n")[0]
    is_plain = isinstance(error, OSError | ValueError | RuntimeError) and line
    return line if is_plain else f"{type(error).__name__} {line}".strip()


def check_token_map(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, names: tuple[str, str]
) -> None:
    """Raise ModelError unless both tokenizers give every token the same id."""
    a, b = one.get_vocab(), other.get_vocab()
    if a == b:
        return
    token = min((t for t in a.keys() | b.keys() if a.get(t) != b.get(t)), key=lambda t: a.get(t, 0))
    raise ModelError(
        f"{names[0]} and {names[1]} do not share one token map: token {token!r} has id "
        f"{a.get(token)} in one and {b.get(token)} in the other; a divergence needs the same "
        "vocabulary in the same order, so use experts tuned from the same backbone"
    )


def reply_log_probs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Log-probabilities of the next token at each real reply token, row by row. Shape [N, V].

    The output head sees only real positions: padding costs nothing there. Float32 at least.
    """
    real_BT = batch["targets"] != IGNORE
    inputs = {key: batch[key] for key in FORWARD_KEYS if key in batch}
    with _only_positions(output_head(model), real_BT):
        logits_NV: Tensor = model(**inputs, use_cache=False).logits
    return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)).log_softmax(-1)


def at_head(
    model: nn.Module, batch: Mapping[str, Tensor], compute: Callable[[Tensor, Head], Tensor]
) -> Tensor:
    """`compute(states [N, D], head)`, of shape [n, 1] or [n, V], as the model's logits.

    It runs inside the model's forward, where sharded weights are whole, and comes out of it as the
    logits do, so that FSDP2 makes them whole again for each backward pass.
    """
    inner, head = unwrapped(model), output_head(model)
    real_BT = batch["targets"] != IGNORE
    inputs = {key: batch[key] for key in FORWARD_KEYS if key in batch}
    given, bias = head_of(model), getattr(inner, BIAS, None)
    head.forward = lambda states_BTD: compute(
        states_BTD[real_BT], given._replace(weight=head_weight(model))
    )
    if bias is not None:
        setattr(inner, BIAS, bias.new_zeros(1, 1))
    try:
        found: Tensor = model(**inputs, use_cache=False).logits
    finally:
        del head.forward
        if bias is not None:
            setattr(inner, BIAS, bias)
    return found


def reply_states(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What the head is given at each real reply token, as `reply_log_probs` has them. [N, D]."""
    return at_head(model, batch, lambda states_ND, head: states_ND)


def head_of(model: nn.Module) -> Head:
    """Weight and bias of the head."""
    head: Any = output_head(model)
    bias = getattr(head, "bias", None)
    if bias is None and (added := getattr(unwrapped(model), BIAS, None)) is not None:
        bias = added[0]
    return Head(head.weight, bias)


class HeadOnly(nn.Module):
    """What is left of a model of which no more than the head is asked."""

    def __init__(self, head: Head):
        super().__init__()
        vocabulary, width = head.weight.shape
        self.head = nn.Linear(width, vocabulary, bias=head.bias is not None, device="meta")
        self.head.weight = nn.Parameter(head.weight.detach(), requires_grad=False)
        if head.bias is not None:
            self.head.bias = nn.Parameter(head.bias.detach(), requires_grad=False)

    def get_output_embeddings(self) -> nn.Module:
        """As transformers' models have it."""
        return self.head


def join_embeddings(model: nn.Module) -> None:
    """Embeddings on one weight become one module: FSDP2 takes a tied weight only from modules that
    it shards together, and encoder-decoders have three."""
    embeddings = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Embedding)
    ]
    first: dict[int, nn.Module] = {}
    for parent, name, child in embeddings:
        setattr(parent, name, first.setdefault(id(child.weight), child))


def reshard(model: nn.Module) -> None:
    """After forward passes alone: FSDP2 leaves weights whole until the next backward pass."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def has_plain_head(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether the logits are those of `head_of` on the states before it; tried on `batch`.

    Not so where an adapter sits on the head, or the model does something to its logits.
    """
    if not isinstance(output_head(model), nn.Linear):  # peft's layers are none
        return False
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ours = at_head(model, batch, head_log_probs)
            theirs = reply_log_probs(model, batch)
    finally:
        model.train(was_training)
        reshard(model)
    return bool(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2))


def in_vocabulary(log_q_NV: Tensor, size: int) -> Tensor:
    """Log-probabilities over `size` tokens, [N, size].

    Models of one token map may pad their vocabulary to different sizes. What is cut off is padding,
    and the rest is normalised again; what is added has probability 0.
    """
    width = log_q_NV.shape[-1]
    if width > size:
        return log_q_NV[:, :size].log_softmax(-1)
    return log_q_NV if width == size else pad(log_q_NV, (0, size - width), value=LOG_ZERO)


def output_head(model: nn.Module) -> nn.Module:
    """The layer from hidden states to logits, also of a wrapped model."""
    inner = unwrapped(model)
    head: nn.Module | None = inner.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output embeddings")
    return head


def unwrapped(model: nn.Module) -> Any:
    """transformers' own model: inside DistributedDataParallel, below an adapter."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if isinstance(inner, PeftModel) else inner


def head_weight(model: nn.Module) -> Tensor:
    """That layer's weight, [V, D]."""
    weight: Any = output_head(model).weight
    return torch.as_tensor(weight)


@contextmanager
def _only_positions(head: nn.Module, real_BT: Tensor) -> Iterator[None]:
    """Inside the block `head` is given [N, D], the rows of [B, T, D] where `real_BT` holds."""
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][real_BT],))
    try:
        yield
    finally:
        hook.remove()


def reply_rows(batch: Mapping[str, Tensor]) -> Tensor:
    """Which row [N] each real reply token is of, in the order of `reply_log_probs`."""
    return (batch["targets"] != IGNORE).nonzero()[:, 0]


def reply_tokens(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(targets [N], is_safe [N]) of the real reply tokens, in the order of `reply_log_probs`."""
    real_BT = batch["targets"] != IGNORE
    is_safe_BT = batch["is_safe"][:, None].expand_as(real_BT)
    return batch["targets"][real_BT], is_safe_BT[real_BT]
