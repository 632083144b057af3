"""Models and how a dialogue becomes their input. One adapter a family; the rest does not ask which.

Shapes: B rows, T reply positions, N real reply tokens of a batch, D width, V vocabulary.

A collated batch is a dict of tensors: what the model's forward takes, and beside it

    targets  [B, T]  the token that each position of the logits predicts, IGNORE where there is none
    is_safe  [B]     the label of the row (never named `label`: collators take that for token ids)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import HfApi, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from jinja2 import TemplateError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flatgd.errors import ModelError
from flatgd.records import Dialogue

IGNORE = -100
FORWARD_KEYS = ("input_ids", "attention_mask", "decoder_input_ids")
Batch = dict[str, Tensor]


class Layout(NamedTuple):
    """How an encoder-decoder was pretrained to see text: what stands between two turns (None: the
    end-of-sequence token), whether <s> opens encoder and decoder texts, whether </s> closes the
    encoder's. Told here, as transformers 5's BlenderbotTokenizer leaves its </s> out."""

    separator: str | None
    opened: bool
    closed: bool


ENCODER_DECODER = {
    "blenderbot": Layout("  ", opened=False, closed=True),  # words hold their leading space
    "blenderbot-small": Layout("\n", opened=False, closed=False),
    "bart": Layout("\n", opened=True, closed=True),
    "t5": Layout(None, opened=False, closed=True),  # its vocabulary has no line break
}
CAUSAL = ("gpt2", "llama", "mistral", "qwen2", "qwen3")


class Example(NamedTuple):
    """One encoded dialogue. `cut_tokens` counts what truncation took from history and reply."""

    history_ids: list[int]
    reply_ids: list[int]
    is_safe: bool
    cut_tokens: int


@dataclass(frozen=True)
class Family:
    """Encoding shared by both kinds of model; `tokenizer` needs an end-of-sequence token.

    `vocabulary` is the model's: what a tokenizer has beyond it, as BlenderBot's <mask>, is left
    out. `prefix` and `suffix` stand around a history, `separator` between its turns.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    separator: str
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    max_history_tokens: int = 128
    max_reply_tokens: int = 64

    def encode(self, dialogue: Dialogue) -> Example:
        """Token ids: the newest end of the history, the beginning of the reply."""
        history, cut = self.history(dialogue.history, dialogue.system)
        reply = [*self._ids(dialogue.reply), self.end]
        kept = reply[: self.max_reply_tokens]
        return Example(history, kept, bool(dialogue.is_safe), cut + len(reply) - len(kept))

    def history(self, turns: Sequence[str], system: str = "") -> tuple[list[int], int]:
        """(token ids of the newest end, how many older tokens were cut)."""
        raise NotImplementedError

    def collate(self, examples: Sequence[Example]) -> Batch:
        raise NotImplementedError

    def prompt(self, examples: Sequence[Example]) -> Batch:
        """Inputs for `generate`."""
        raise NotImplementedError

    @property
    def end(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(self.end if pad is None else pad)

    def _ids(self, text: str) -> list[int]:
        # verbose=False: that a history is longer than the model's window is ours to count and cut
        encoded = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return [token for token in encoded["input_ids"] if token < self.vocabulary]

    def _newest(self, ids: list[int], suffix: Sequence[int] = ()) -> tuple[list[int], int]:
        """`ids` cut at their old end to what fits between prefix and suffix."""
        room = max(0, self.max_history_tokens - len(self.prefix) - len(suffix))
        kept = ids[max(0, len(ids) - room) :]
        return [*self.prefix, *kept, *suffix], len(ids) - len(kept)


@dataclass(frozen=True)
class EncoderDecoder(Family):
    """The encoder reads the turns, a system message first; the decoder starts with `start` and
    predicts reply + end."""

    start: tuple[int, ...] = (1,)

    def history(self, turns: Sequence[str], system: str = "") -> tuple[list[int], int]:
        lines = [system, *turns] if system else turns
        ids = self._ids(self.separator.join(lines)) if lines else []
        return self._newest(ids or ([] if self.suffix else [self.end]), self.suffix)

    def collate(self, examples: Sequence[Example]) -> Batch:
        quiet = [IGNORE] * (len(self.start) - 1)  # nothing is predicted inside `start`
        shifted = [[*self.start, *e.reply_ids[:-1]] for e in examples]
        return {
            **self._encoder(examples),
            "decoder_input_ids": _pad(shifted, self.pad),
            "targets": _pad([[*quiet, *e.reply_ids] for e in examples], IGNORE),
            "is_safe": torch.tensor([e.is_safe for e in examples]),
        }

    def prompt(self, examples: Sequence[Example]) -> Batch:
        start = torch.tensor([self.start]).repeat(len(examples), 1)
        return {**self._encoder(examples), "decoder_input_ids": start}

    def _encoder(self, examples: Sequence[Example]) -> Batch:
        histories = [e.history_ids for e in examples]
        return {
            "input_ids": _pad(histories, self.pad),
            "attention_mask": _pad([[1] * len(h) for h in histories], 0),
        }


@dataclass(frozen=True)
class Causal(Family):
    """Decoder-only: the tokenizer's chat template, or each turn closed by `separator`."""

    chat: bool = False

    def history(self, turns: Sequence[str], system: str = "") -> tuple[list[int], int]:
        if not self.chat:
            lines = [system, *turns] if system else turns
            text = "".join(f"{line}{self.separator}" for line in lines)
            return self._newest(self._ids(text or self.separator))
        # the last turn is the user's and so must be the first: templates want them in turn
        kept = list(turns[1 - len(turns) % 2 :]) or [""]
        whole = ids = self._templated(kept, system)
        while len(ids) > self.max_history_tokens and len(kept) > 2:
            kept = kept[2:]
            ids = self._templated(kept, system)
        ids = ids[-self.max_history_tokens :]
        return ids, len(whole) - len(ids)

    def _templated(self, turns: Sequence[str], system: str) -> list[int]:
        messages = [{"role": "system", "content": system}] if system else []
        for place, turn in enumerate(turns):
            messages.append({"role": "assistant" if place % 2 else "user", "content": turn})
        try:
            ids: Any = self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                enable_thinking=False,  # the replies learned from hold no thoughts
            )
        except TemplateError as error:
            raise ModelError(
                f'the chat template refuses this dialogue: {error}; turn_separator: "\\n" does '
                "without the template"
            ) from None
        return list(ids)

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [e.history_ids + e.reply_ids for e in examples]
        targets = [[IGNORE] * (len(e.history_ids) - 1) + [*e.reply_ids, IGNORE] for e in examples]
        return {
            "input_ids": _pad(rows, self.pad),
            "attention_mask": _pad([[1] * len(row) for row in rows], 0),
            "targets": _pad(targets, IGNORE),
            "is_safe": torch.tensor([e.is_safe for e in examples]),
        }

    def prompt(self, examples: Sequence[Example]) -> Batch:
        histories = [e.history_ids for e in examples]
        return {
            "input_ids": _pad(histories, self.pad, left=True),
            "attention_mask": _pad([[1] * len(h) for h in histories], 0, left=True),
        }


def _pad(rows: Sequence[list[int]], value: int, left: bool = False) -> Tensor:
    width = max(len(row) for row in rows)
    fill = [[value] * (width - len(row)) for row in rows]
    return torch.tensor([f + r if left else r + f for r, f in zip(rows, fill, strict=True)])


def family_of(
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_history_tokens: int = 128,
    max_reply_tokens: int = 64,
    turn_separator: str | None = None,
) -> Family:
    """The adapter for a model's config. Raises ModelError for a family that is not supported.

    `turn_separator` is put between turns instead of the family's own, and instead of a chat
    template.
    """
    kind = config.model_type
    if kind not in ENCODER_DECODER and kind not in CAUSAL:
        supported = ", ".join([*ENCODER_DECODER, *CAUSAL])
        raise ModelError(f"model type {kind!r} is not supported; supported are {supported}")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of this {kind} has no eos_token; set one and save it")
    if kind in CAUSAL:
        return Causal(
            tokenizer,
            config.vocab_size,
            turn_separator or "\n",
            _beginning(tokenizer),
            max_history_tokens=max_history_tokens,
            max_reply_tokens=max_reply_tokens,
            chat=turn_separator is None and bool(tokenizer.chat_template),
        )
    layout = ENCODER_DECODER[kind]
    positions = getattr(config, "max_position_embeddings", None) or max_history_tokens
    first = config.decoder_start_token_id
    opening = (int(tokenizer.bos_token_id),) if layout.opened else ()
    return EncoderDecoder(
        tokenizer,
        config.vocab_size,
        turn_separator or layout.separator or tokenizer.eos_token,
        opening,
        (int(tokenizer.eos_token_id),) if layout.closed else (),
        min(max_history_tokens, positions),
        max_reply_tokens,
        start=(int(tokenizer.pad_token_id if first is None else first), *opening),
    )


def _beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before a text, as Llama's <s>."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = range(len(whole) - len(plain) + 1)
    return next((tuple(whole[:i]) for i in places if whole[i : i + len(plain)] == plain), ())


def load_config(name: str) -> Any:
    """A model's configuration, no weights. Raises ModelError when there is none at `name`."""
    _look_for(name)
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model at {name!r}: {_first_line(error)}") from None


def is_at_hand(name: str) -> bool:
    """Whether a model can be looked at without network: a folder, or in the hub's cache."""
    return Path(name).is_dir() or isinstance(try_to_load_from_cache(name, "config.json"), str)


def _look_for(name: str) -> None:
    """One question to the hub where the model is not at hand, told at once if the answer is no:
    transformers would try again and again."""
    if Path(name).is_absolute() and not Path(name).is_dir():
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
    except HFValidationError:
        raise ModelError(f"no folder {name!r}, and the hub has no such names") from None
    except Exception as error:  # of whichever HTTP client the hub's library uses
        raise ModelError(
            f"{name!r} is not in the cache, and the hub cannot be asked ({_first_line(error)}); "
            "`flatgd check --offline` checks all else"
        ) from None


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer at a folder or hub name. Raises ModelError when there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"no tokenizer at {name!r}: {_first_line(error)}") from None
    return tokenizer


def load_model(name: str | Path) -> PreTrainedModel:
    """A model with float32 weights, from safetensors only, without remote code.

    float32 whatever the file holds: in half precision the perturbation of the second pass vanishes.
    """
    config = load_config(str(name))
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return load_as(kind, str(name))


def load_as(kind: Any, name: str) -> PreTrainedModel:
    """A model of one of transformers' auto classes, loaded as `load_model` does."""
    try:
        model: PreTrainedModel = kind.from_pretrained(
            name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {name!r}: {_first_line(error)}") from None
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


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


def in_vocabulary(log_q_NV: Tensor, size: int) -> Tensor:
    """Log-probabilities over `size` tokens, [N, size].

    Models of one token map may pad their vocabulary to different sizes. What is cut off is padding,
    and the rest is normalised again; what is added has probability 0.
    """
    width = log_q_NV.shape[-1]
    if width > size:
        return log_q_NV[:, :size].log_softmax(-1)
    return log_q_NV if width == size else pad(log_q_NV, (0, size - width), value=-torch.inf)


def output_head(model: nn.Module) -> nn.Module:
    """The layer from hidden states to logits, also of a wrapped model."""
    inner: Any = getattr(model, "module", model)
    head: nn.Module | None = inner.get_output_embeddings()
    if head is None:
        raise ModelError(f"{type(inner).__name__} has no output embeddings")
    return head


@contextmanager
def _only_positions(head: nn.Module, real_BT: Tensor) -> Iterator[None]:
    """Inside the block `head` is given [N, D], the rows of [B, T, D] where `real_BT` holds."""
    hook = head.register_forward_pre_hook(lambda _, args: (args[0][real_BT],))
    try:
        yield
    finally:
        hook.remove()


def reply_tokens(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(targets [N], is_safe [N]) of the real reply tokens, in the order of `reply_log_probs`."""
    real_BT = batch["targets"] != IGNORE
    is_safe_BT = batch["is_safe"][:, None].expand_as(real_BT)
    return batch["targets"][real_BT], is_safe_BT[real_BT]


def split_batch(batch: Batch, size: int | None) -> list[Batch]:
    """A collated batch as micro-batches of at most `size` rows, each cut to its longest row.

    Rows are sorted by label and length first: less padding, and a micro-batch of toxic rows alone
    has no likelihood term to differentiate. Every mean is over the whole batch, so order is free.
    """
    lengths = batch["attention_mask"].sum(1)
    order = torch.argsort(batch["is_safe"].long() * (int(lengths.max()) + 1) + lengths, stable=True)
    return [_narrow(batch, rows) for rows in order.split(size or len(order))]


def _narrow(batch: Batch, rows: Tensor) -> Batch:
    part = {key: value[rows] for key, value in batch.items()}
    width = int(part["attention_mask"].sum(1).max())
    real_columns = (part["targets"] != IGNORE).any(0).nonzero()
    reply_width = int(real_columns.max()) + 1 if "decoder_input_ids" in part else width
    for key in ("input_ids", "attention_mask"):
        part[key] = part[key][:, :width]
    for key in ("targets", "decoder_input_ids"):
        if key in part:
            part[key] = part[key][:, :reply_width]
    return part
