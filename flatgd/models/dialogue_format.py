"""How a dialogue becomes a model's input: one class for encoder-decoders, one for decoders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from flatgd.dialogue import Dialogue, Turn
from flatgd.errors import DataError, ModelError, Problem
from flatgd.io.records import clean_text
from flatgd.models.chat_template import ChatTemplate
from flatgd.models.encoding import (
    APART,
    IGNORE,
    NOTHING_FITS,
    Batch,
    DialogueFormat,
    Example,
    Prompt,
    about,
    padded,
)
from flatgd.models.text_encoder import CLOSE, OPEN

TEMPLATE_DATE = "2025-01-01"
TEMPLATE_KWARGS: Mapping[str, Any] = {"enable_thinking": False}  # the replies hold no thoughts


class Layout(NamedTuple):
    """The text layout of an encoder-decoder's pretraining: the separator between turns (None: the
    end-of-sequence token), whether <s> opens encoder and decoder texts, and whether </s> closes the
    encoder's. Stated here, because transformers 5's BlenderbotTokenizer leaves </s> out."""

    separator: str | None
    opened: bool
    closed: bool


ENCODER_DECODER = {
    "blenderbot": Layout("  ", opened=False, closed=True),  # words hold their leading space
    "blenderbot-small": Layout("\n", opened=False, closed=False),
    "bart": Layout("\n", opened=True, closed=True),
    "t5": Layout(None, opened=False, closed=True),  # its vocabulary has no line break
}


@dataclass(frozen=True)
class EncoderDecoder(DialogueFormat):
    """The encoder reads the system message and the turns; the decoder starts with `start` and
    predicts the reply and its end. White space is folded, because it separates turns."""

    start: tuple[int, ...] = (1,)

    def prompts(self, rows: Sequence[Dialogue]) -> list[Prompt]:
        return self._joined([_folded(row) for row in rows])

    def _replies(
        self, prompts: Sequence[Prompt], replies: Sequence[str]
    ) -> list[tuple[list[int], tuple[str, ...]]]:
        return super()._replies(prompts, [clean_text(reply) for reply in replies])

    def said(self, ids: Sequence[int], stops: Sequence[int]) -> str:
        return clean_text(super().said(ids, stops))

    def _nothing(self, has_system: bool) -> list[int]:
        return [] if self.suffix or has_system else [self.end]

    def collate(self, examples: Sequence[Example]) -> Batch:
        quiet = [IGNORE] * (len(self.start) - 1)  # positions inside `start` predict nothing
        shifted = [[*self.start, *e.reply_ids[:-1]] for e in examples]
        return {
            **self._encoder(examples),
            "decoder_input_ids": padded(shifted, self.pad),
            "targets": padded([[*quiet, *e.reply_ids] for e in examples], IGNORE),
            **about(examples),
        }

    def prompt(self, examples: Sequence[Example]) -> Batch:
        start = torch.tensor([self.start]).repeat(len(examples), 1)
        return {**self._encoder(examples), "decoder_input_ids": start}

    def _encoder(self, examples: Sequence[Example]) -> Batch:
        histories = [e.history_ids for e in examples]
        return {
            "input_ids": padded(histories, self.pad),
            "attention_mask": padded([[1] * len(h) for h in histories], 0),
        }


def _folded(row: Dialogue) -> Dialogue:
    turns = tuple(Turn(turn.role, clean_text(turn.text)) for turn in row.history)
    return replace(row, history=turns, system=clean_text(row.system))


@dataclass(frozen=True)
class Causal(DialogueFormat):
    """Decoder-only models: the tokenizer's chat template, or turns that `separator` ends.

    `template_date` and `template_kwargs` are passed to the template.
    """

    chat: bool = False
    template_date: str = TEMPLATE_DATE
    template_kwargs: Mapping[str, Any] = field(default_factory=lambda: dict(TEMPLATE_KWARGS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat:  # raises if the template writes a token that the embedding lacks
            self.text.ids([self.template.reply.lead + self.template.reply.end])
            self.history(["a"]) if self.text.is_larger else None

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.text, self.template_date, self.template_kwargs)

    @property
    def end(self) -> int:
        return self.template.reply.end_id if self.chat else super().end

    @cached_property
    def lead(self) -> str:
        """The decoded text that the template writes before a reply's own text."""
        if not self.chat:
            return ""
        (ids,) = self.text.ids([self.template.reply.lead])
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def said(self, ids: Sequence[int], stops: Sequence[int]) -> str:
        return super().said(ids, stops).removeprefix(self.lead).strip()

    def _nothing(self, has_system: bool) -> list[int]:
        return [] if has_system else self.text.ids([self.separator])[0]

    def prompts(self, rows: Sequence[Dialogue]) -> list[Prompt]:
        if not self.chat:
            return self._joined(rows, close=self.separator)
        room = self.max_history_tokens
        distinct = {(row.system, row.history): row for row in rows}  # rows often share a prompt
        rendered = self.template.prompts(list(distinct))
        encoded = self.text.ids([text for text, _, _ in rendered])
        found: dict[Any, Prompt] = {}
        least: dict[Any, int] = {}  # tokens of those that do not fit
        for (key, row), ids, (text, messages, notes) in zip(
            distinct.items(), encoded, rendered, strict=True
        ):
            if len(ids) <= room:
                found[key] = Prompt(ids, 0, text, messages, notes)
            elif (shorter := self._shortened(row, ids[:1])) is not None:
                found[key] = shorter._replace(cut=len(ids) - len(shorter.ids))
            else:
                least[key] = len(self._one(row.system, ())[0])
        problems = [
            Problem(row.where or row.conversation, 0, NOTHING_FITS.format(room=room, least=size))
            for row in rows
            if (size := least.get((row.system, row.history))) is not None
        ]
        if problems:
            raise DataError(problems)
        return [found[row.system, row.history] for row in rows]

    def _one(self, system: str, turns: Sequence[Turn]) -> Prompt:
        ((text, messages, notes),) = self.template.prompts([(system, turns)])
        return Prompt(self.text.ids([text])[0], 0, text, messages, notes)

    def _shortened(self, row: Dialogue, opening: list[int]) -> Prompt | None:
        """The prompt without its oldest turns, or, if the newest turn alone is too long, without
        the beginning of that turn's text. None if nothing fits.

        The prompt must begin with the id `opening`: a template may write the BOS before user turns
        only.
        """
        for first in range(1, len(row.history)):
            prompt = self._one(row.system, row.history[first:])
            if len(prompt.ids) <= self.max_history_tokens and prompt.ids[:1] == opening:
                return prompt
        role, text = row.history[-1] if row.history else ("user", "")
        low, high, best = 1, len(text) - 1, None
        while low <= high:  # bisect for the fewest characters to remove
            middle = (low + high) // 2
            prompt = self._one(row.system, [Turn(role, text[middle:].lstrip())])  # type: ignore[arg-type]
            if len(prompt.ids) <= self.max_history_tokens:
                best, high = prompt, middle - 1
            else:
                low = middle + 1
        return best

    def _replies(
        self, prompts: Sequence[Prompt], replies: Sequence[str]
    ) -> list[tuple[list[int], tuple[str, ...]]]:
        if not self.chat:
            return super()._replies(prompts, replies)
        rendered = self.template.wholes([(p.text, p.messages, p.notes) for p in prompts], replies)
        # what precedes the prompt's last control token is encoded already
        breaks = {text: self.text.break_in(text) for text in {row.prompt for row in rendered}}
        cuts = [
            0 if OPEN in row.whole or CLOSE in row.whole else breaks[row.prompt] for row in rendered
        ]
        ends = {row.prompt[at:] for row, at in zip(rendered, cuts, strict=True) if at}
        of_ends = dict(zip(ends, self.text.ids([*ends]), strict=True))
        wholes = self.text.ids([row.whole[at:] for row, at in zip(rendered, cuts, strict=True)])
        found = []
        for prompt, row, at, whole in zip(prompts, rendered, cuts, wholes, strict=True):
            before = of_ends[row.prompt[at:]] if at else prompt.ids
            target, notes = whole[len(before) :], row.notes[len(prompt.notes) :]
            if whole[: len(before)] != before:
                # the tokenizer merges the prompt's last letters with the reply's first; inference
                # cannot, because it tokenizes the prompt alone
                target = self.text.ids([row.whole[len(row.prompt) :]])[0]
                notes = (*notes, APART)
            found.append((target, notes))
        return found

    def collate(self, examples: Sequence[Example]) -> Batch:
        rows = [e.history_ids + e.reply_ids for e in examples]
        targets = [[IGNORE] * (len(e.history_ids) - 1) + [*e.reply_ids, IGNORE] for e in examples]
        return {
            "input_ids": padded(rows, self.pad),
            "attention_mask": padded([[1] * len(row) for row in rows], 0),
            "targets": padded(targets, IGNORE),
            **about(examples),
        }

    def prompt(self, examples: Sequence[Example]) -> Batch:
        histories = [e.history_ids for e in examples]
        return {
            "input_ids": padded(histories, self.pad, left=True),
            "attention_mask": padded([[1] * len(h) for h in histories], 0, left=True),
        }


def format_for(
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_history_tokens: int = 128,
    max_reply_tokens: int = 64,
    turn_separator: str | None = None,
    template_date: str = TEMPLATE_DATE,
    chat_template_kwargs: Mapping[str, Any] = TEMPLATE_KWARGS,
) -> DialogueFormat:
    """The dialogue format of a model's config. Raises ModelError for a model without support.

    `turn_separator` replaces the format's own separator, and a chat template. `template_date`
    (YYYY-MM-DD) and `chat_template_kwargs` are passed to the chat template. Lengths are in tokens.
    """
    kind = config.model_type
    _check_kind(config)
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of this {kind} has no eos_token; set one and save it")
    vocabulary = config.get_text_config().vocab_size
    if kind not in ENCODER_DECODER:
        return Causal(
            tokenizer,
            vocabulary,
            turn_separator or "\n",
            _beginning(tokenizer),
            max_history_tokens=max_history_tokens,
            max_reply_tokens=max_reply_tokens,
            chat=turn_separator is None and bool(tokenizer.chat_template),
            template_date=template_date,
            template_kwargs=chat_template_kwargs,
        )
    layout = ENCODER_DECODER[kind]
    positions = getattr(config, "max_position_embeddings", None) or max_history_tokens
    first = config.decoder_start_token_id
    opening = (int(tokenizer.bos_token_id),) if layout.opened else ()
    return EncoderDecoder(
        tokenizer,
        vocabulary,
        turn_separator or layout.separator or tokenizer.eos_token,
        opening,
        (int(tokenizer.eos_token_id),) if layout.closed else (),
        min(max_history_tokens, positions),
        max_reply_tokens,
        start=(int(tokenizer.pad_token_id if first is None else first), *opening),
    )


def speaks(config: Any) -> bool:
    """Whether flatgd can generate with a model of this config: with any decoder-only model, and
    with the encoder-decoders in ENCODER_DECODER."""
    kind = config.model_type
    if config.is_encoder_decoder:
        return kind in ENCODER_DECODER
    is_encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(
        config, "is_decoder", False
    )
    has_own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    return not is_encoder and (kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or has_own_code)


def _check_kind(config: Any) -> None:
    if speaks(config):
        return
    kind, known = config.model_type, ", ".join(ENCODER_DECODER)
    if config.is_encoder_decoder:
        raise ModelError(
            f"model type {kind!r} is not supported; the supported encoder-decoders are {known}"
        )
    raise ModelError(
        f"model type {kind!r} is not supported, because it does not generate text. Any "
        f"decoder-only model is supported, and the encoder-decoders {known}"
    )


def declare_stops(model: Any, dialogue_format: DialogueFormat) -> None:
    """Write the end token of training into the model's generation settings, so that the checkpoint
    also stops there when other programs load it."""
    if getattr(model, "generation_config", None) is not None:
        stops = declared_stops(model, dialogue_format)
        model.generation_config.eos_token_id = stops if len(stops) > 1 else stops[0]


def declared_stops(model: Any, dialogue_format: DialogueFormat) -> list[int]:
    """Every id that ends a reply: the end token of training, and those that checkpoint and
    tokenizer declare."""
    found = {dialogue_format.end, int(dialogue_format.tokenizer.eos_token_id)}
    for settings in (getattr(model, "generation_config", None), model.config):
        ends = getattr(settings, "eos_token_id", None)
        found |= set(ends if isinstance(ends, list | tuple) else [ends] if ends is not None else [])
    return sorted(int(end) for end in found)


def _beginning(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that the tokenizer writes before a text, such as Llama's <s>."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = range(len(whole) - len(plain) + 1)
    return next((tuple(whole[:i]) for i in places if whole[i : i + len(plain)] == plain), ())
