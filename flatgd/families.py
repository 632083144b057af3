"""How a dialogue becomes a model's input. One adapter a family; the rest does not ask which.

A collated batch is a dict of tensors: what the model's forward takes, and beside it

    targets  [B, T]  the token that each position of the logits predicts, IGNORE where there is none
    is_safe  [B]     the label of the row (never named `label`: collators take that for token ids)
    row      [B]     its number in the training data, -1 elsewhere

B rows, T reply positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError

IGNORE = -100
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
    """One encoded dialogue. `cut_tokens` counts what truncation took from history and reply, `row`
    is its number in the training data."""

    history_ids: list[int]
    reply_ids: list[int]
    is_safe: bool
    cut_tokens: int
    row: int = -1


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
            **_about(examples),
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
            **_about(examples),
        }

    def prompt(self, examples: Sequence[Example]) -> Batch:
        histories = [e.history_ids for e in examples]
        return {
            "input_ids": _pad(histories, self.pad, left=True),
            "attention_mask": _pad([[1] * len(h) for h in histories], 0, left=True),
        }


def _about(examples: Sequence[Example]) -> Batch:
    return {
        "is_safe": torch.tensor([e.is_safe for e in examples]),
        "row": torch.tensor([e.row for e in examples]),
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


def split_batch(batch: Batch, size: int | None, by_label: bool = False) -> list[Batch]:
    """A collated batch as micro-batches of at most `size` rows, each cut to its longest row.

    Rows are sorted by label and length first: less padding, and a micro-batch of toxic rows alone
    has no likelihood term to differentiate; `by_label`: all micro-batches are of one label. Every
    mean is over the whole batch, so order is free. Rows with one number in `pair` [B] (-1: none)
    stay side by side, toxic before safe.
    """
    lengths = batch["attention_mask"].sum(1)
    rank = batch["is_safe"].long() * (int(lengths.max()) + 1) + lengths
    size = size or len(rank)
    if "pair" not in batch:
        rows = torch.argsort(rank, stable=True)
        toxic = int((~batch["is_safe"]).sum())
        groups = [rows[:toxic], rows[toxic:]] if by_label else [rows]
        return [take_rows(batch, part) for group in groups for part in _even_parts(group, size)]
    pair = batch["pair"]
    singles, paired = (pair < 0).nonzero()[:, 0], (pair >= 0).nonzero()[:, 0]
    singles = singles[torch.argsort(rank[singles], stable=True)]
    paired = paired[torch.argsort(2 * pair[paired] + batch["is_safe"][paired])]  # toxic, safe
    parts = [*singles.split(size), *paired.split(max(2, size // 2 * 2))]
    return [take_rows(batch, rows) for rows in parts if len(rows)]


def _even_parts(rows: Tensor, size: int) -> list[Tensor]:
    """As few parts of at most `size` as can be, of one length or one less."""
    return list(rows.tensor_split(-(-len(rows) // size))) if len(rows) else []


def emptied(batch: Batch, rows: Tensor) -> Batch:
    """The batch with `rows` [B], a mask, of no reply tokens: no sum sees them."""
    nothing = {"targets": IGNORE, "is_safe": True, "row": -1, "pair": -1}
    changed = {key: batch[key].clone() for key in nothing if key in batch}
    for key, value in changed.items():
        value[rows] = nothing[key]
    return {**batch, **changed}


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a collated batch, cut to the longest of them where the batch is ours."""
    part = {key: value[rows] for key, value in batch.items()}
    if "labels" in part:
        return part
    width = int(part["attention_mask"].sum(1).max())
    reply_widths = [1, *((part["targets"] != IGNORE).any(0).nonzero()[:, 0] + 1).tolist()]
    reply_width = reply_widths[-1] if "decoder_input_ids" in part else width
    for key in ("input_ids", "attention_mask"):
        part[key] = part[key][:, :width]
    for key in ("targets", "decoder_input_ids"):
        if key in part:
            part[key] = part[key][:, :reply_width]
    return part
