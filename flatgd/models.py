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
from safetensors import SafetensorError
from torch import Tensor, nn
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

ENCODER_DECODER = ("blenderbot",)
CAUSAL = ("llama", "qwen2", "qwen3", "gpt2")


class Example(NamedTuple):
    """One encoded dialogue. `cut_tokens` counts what truncation took from history and reply."""

    history_ids: list[int]
    reply_ids: list[int]
    is_safe: bool
    cut_tokens: int


@dataclass(frozen=True)
class Family:
    """Encoding shared by both families; `tokenizer` needs an end-of-sequence token."""

    tokenizer: PreTrainedTokenizerBase
    max_history_tokens: int = 128
    max_reply_tokens: int = 64

    def encode(self, dialogue: Dialogue) -> Example:
        """Token ids: the newest end of the history, the beginning of the reply."""
        history = self.history_ids(dialogue.history)
        reply = [*self._ids(dialogue.reply), self.end]
        cut = max(0, len(reply) - self.max_reply_tokens)
        kept = history[-self.max_history_tokens :]
        return Example(
            kept,
            reply[: self.max_reply_tokens],
            bool(dialogue.is_safe),
            cut + len(history) - len(kept),
        )

    def history_ids(self, turns: Sequence[str]) -> list[int]:
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
        ids: list[int] = encoded["input_ids"]
        return ids


@dataclass(frozen=True)
class EncoderDecoder(Family):
    """BlenderBot: turns joined by two spaces, the encoder's text closed by </s>; the decoder starts
    with `start` and predicts text + </s>."""

    start: int = 1

    def history_ids(self, turns: Sequence[str]) -> list[int]:
        # BlenderBot's vocabulary holds words with their leading space
        return [*self._ids("  ".join(turns)), self.end] if turns else [self.end]

    def collate(self, examples: Sequence[Example]) -> Batch:
        targets = _pad([e.reply_ids for e in examples], IGNORE)
        shifted = _pad([[self.start, *e.reply_ids[:-1]] for e in examples], self.pad)
        return {
            **self.prompt(examples),
            "decoder_input_ids": shifted,
            "targets": targets,
            "is_safe": torch.tensor([e.is_safe for e in examples]),
        }

    def prompt(self, examples: Sequence[Example]) -> Batch:
        histories = [e.history_ids for e in examples]
        return {
            "input_ids": _pad(histories, self.pad),
            "attention_mask": _pad([[1] * len(h) for h in histories], 0),
        }


@dataclass(frozen=True)
class Causal(Family):
    """Decoder-only: the chat template where the tokenizer has one, else one turn a line."""

    def history_ids(self, turns: Sequence[str]) -> list[int]:
        if self.tokenizer.chat_template:
            # the last turn is the user's and so must be the first: templates want them in turn
            kept = turns[1 - len(turns) % 2 :] or ("",)
            messages = [
                {"role": "assistant" if i % 2 else "user", "content": turn}
                for i, turn in enumerate(kept)
            ]
            ids: Any = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False
            )
            return list(ids)
        return self._ids("".join(f"{turn}\n" for turn in turns) or "\n")

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
) -> Family:
    """The adapter for a model's config. Raises ModelError for a family that is not supported."""
    kind = config.model_type
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of this {kind} has no eos_token; set one and save it")
    if kind in ENCODER_DECODER:
        positions = getattr(config, "max_position_embeddings", max_history_tokens)
        return EncoderDecoder(
            tokenizer,
            min(max_history_tokens, positions),
            min(max_reply_tokens, positions),
            start=config.decoder_start_token_id,
        )
    if kind in CAUSAL:
        return Causal(tokenizer, max_history_tokens, max_reply_tokens)
    supported = ", ".join(ENCODER_DECODER + CAUSAL)
    raise ModelError(f"model type {kind!r} is not supported; supported are {supported}")


def load_config(name: str) -> Any:
    """A model's configuration, no weights. Raises ModelError when there is none at `name`."""
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"no model at {name!r}: {_first_line(error)}") from None


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
    try:
        model: PreTrainedModel = kind.from_pretrained(
            str(name), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {str(name)!r}: {_first_line(error)}") from None
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
