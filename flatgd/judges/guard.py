"""The guard judge: a generative safety model, asked for its verdict.

A guard reads a conversation and answers in words, such as "unsafe". P(toxic) is a softmax over the
first tokens of the verdict's words, at the place where the verdict stands, in one forward pass.
Only a guard whose verdict follows other answers (WildGuard) writes those first. Like every judge,
it is calibrated on labelled rows.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import before
from flatgd.errors import ModelError
from flatgd.judges.base import Progress
from flatgd.judges.calibration import Scores
from flatgd.judges.guard_presets import PRESETS, Question
from flatgd.judges.reading import Cuts, Pair, check_room, encode_within, longest_input, newest
from flatgd.judges.templates import pieces_of
from flatgd.models.batching import READ_AT_ONCE, at_once, token_batches
from flatgd.models.dialogue_format import speaks
from flatgd.models.loading import load_as, load_config, load_tokenizer, on_device
from flatgd.models.reader import Reader
from flatgd.models.text_encoder import TextEncoder
from flatgd.runtime.time_limit import time_limit

MAX_SECONDS = 10.0  # for the template of one conversation
WRITES = 32  # tokens at most before a verdict that follows other answers
RARE = 0.5  # of the probability: a guard whose verdict's words have less does not know the question
RESERVED = {"tokenize", "add_generation_prompt", "conversation"}
PROBE: Pair = (("hello",), "hi there")
LAST = "zqx"  # stands for a reply in the check that a chat template shows it


@dataclass
class Verdicts:
    """The verdicts since the judge was loaded: their number, the probability of the verdict's words
    in them, and how many guards had not announced a verdict in WRITES tokens."""

    count: int = 0
    mass: float = 0.0
    unannounced: int = 0

    @property
    def remark(self) -> str:
        """What is wrong with them, or ""."""
        mean = self.mass / max(1, self.count)
        found = []
        if self.count and mean < RARE:
            found.append(
                f"the verdict's words have a probability of {mean:.2f} on average: the model may "
                "expect another question"
            )
        if self.unannounced:
            found.append(f"{self.unannounced:,} of {self.count:,} answers announced no verdict")
        return "; ".join(found)

    def check(self, model: str | None, wanted: str) -> None:
        """Raise ModelError if most answers announced no verdict: their scores would be noise."""
        if 2 * self.unannounced > self.count:
            raise ModelError(
                f"{self.unannounced:,} of {self.count:,} answers of {model} did not come to "
                f"{wanted.strip()!r} within {WRITES} tokens; check preset and instruction against "
                "its model card"
            )


class Prompt:
    """The text that a guard reads, as tokens. Text of the conversation never becomes a special
    token."""

    def __init__(self, settings: JudgeSettings, tokenizer: PreTrainedTokenizerBase, config: Any):
        self.settings, self.tokenizer = settings, tokenizer
        self.question = question_of(settings)
        _check_unused(settings, self.question)
        self.encoder = TextEncoder(tokenizer, config.get_text_config().vocab_size)
        first = tokenizer("a", verbose=False)["input_ids"][:1]
        self._opening = first if first == [tokenizer.bos_token_id] else []
        self.in_parts = not self.question.template and self._needs_parts()
        self._check_end()
        # once, on a known reply: another might end in the prefix
        self._prefix = self.question.prefix
        if self._prefix and self._text(PROBE).endswith(self._prefix):
            self._prefix = ""  # the template writes it
        self.toxic, self.safe, self._loose = self._verdicts()

    def ids(self, pair: Pair) -> list[int]:
        """The tokens up to the verdict, or up to the answers before it."""
        found = self._tokens(pair)
        return found[: len(found) - (0 if self.question.verdict_after else self._loose)]

    def shortened(self, pair: Pair) -> Pair:
        """The newest turns of the history, as many as the judge reads."""
        lines = self.settings.history_lines
        if self.question.longest_history is not None:
            lines = min(lines, self.question.longest_history)
        kept = newest(pair[0], lines)
        if not self.question.template and len(kept) % 2 == 0:
            kept = kept[1:]  # from a turn of the user on: guards' templates take no other
        return kept, pair[1]

    def _check_end(self) -> None:
        """Raise ModelError if nothing stands between a reply and the verdict: the reply's last
        letters would decide what the verdict's first token is."""
        plain = self.question.template and not self._is_message
        after = self.question.template.rpartition("{reply}")[2] + self.question.prefix
        if plain and not (after + self.question.verdict_after).strip():
            raise ModelError(
                f"{self.settings.model} has no chat template, so the guard's template needs words "
                "after {reply}, or a prefix: the verdict must not follow the reply itself"
            )

    def _tokens(self, pair: Pair, more: str = "") -> list[int]:
        """The tokens of the prompt with its prefix, and of `more` after it."""
        opening = self._opening if self.question.template and not self._is_message else []
        return [*opening, *self.encoder.ids([self._text(pair) + self._prefix + more])[0]]

    def _text(self, pair: Pair) -> str:
        mark = self.encoder.mark
        history, reply = tuple(map(mark, pair[0])), mark(pair[1])
        if not self.question.template:
            return self._chat(self._messages(history, reply))
        pieces = pieces_of(self.settings, self.question.template, history, reply)
        text = "".join(
            piece if kind else piece.replace("{instruction}", self._instruction)
            for piece, kind in pieces
        )
        return self._chat([{"role": "user", "content": text}]) if self._is_message else text

    @property
    def _is_message(self) -> bool:
        """Whether the filled template is the user's message of a chat model."""
        return self.settings.preset is None and self.tokenizer.chat_template is not None

    @property
    def _instruction(self) -> str:
        return self.settings.instruction or self.question.instruction

    def _messages(self, history: Sequence[str], reply: str) -> list[dict[str, Any]]:
        """The conversation as messages; an empty turn of the user before a reply alone."""
        turns = before(history)
        said: list[tuple[str, str]] = [(turn.role, turn.text) for turn in turns] or [("user", "")]
        said.append(("assistant", reply))
        if self.question.last_turn:
            asked = self.question.last_turn.replace("{instruction}", self._instruction)
            said.append(("user", asked))
        return [{"role": role, "content": self._content(text)} for role, text in said]

    def _content(self, text: str) -> Any:
        return [{"type": "text", "text": text}] if self.in_parts else text

    def _chat(self, messages: list[dict[str, Any]]) -> str:
        given = {**self.question.kwargs, **self.settings.template_kwargs}
        try:
            with time_limit(MAX_SECONDS):
                return str(
                    self.tokenizer.apply_chat_template(
                        messages,
                        tokenize=False,
                        add_generation_prompt=self.question.generation_prompt,
                        **given,
                    )
                )
        except Exception as error:  # templates raise what they like
            reason = " ".join(str(error).split())
            raise ModelError(
                f"the chat template of {self.settings.model} does not take a conversation: {reason}"
            ) from None

    def _needs_parts(self) -> bool:
        """Whether the template takes content as a list of parts, not as text. Raises ModelError if
        it shows the reply in neither form."""
        if self.tokenizer.chat_template is None:
            raise ModelError(
                f"preset {self.settings.preset} reads conversations through a chat template, and "
                f"{self.settings.model} has none; name another preset, or give a template"
            )
        refused: list[ModelError] = []
        for self.in_parts in (False, True):
            try:
                if LAST in self._chat(self._messages(("hello",), LAST)):
                    return self.in_parts
            except ModelError as error:
                refused.append(error)
        if len(refused) == 2:
            raise refused[0]
        raise ModelError(
            f"the chat template of {self.settings.model} leaves out the assistant's reply; it is "
            f"not that of a guard for preset {self.settings.preset}"
        )

    def _verdicts(self) -> tuple[list[int], list[int], int]:
        """The first tokens of the toxic and of the safe words, and how many tokens at the end of a
        prompt belong to them: a space before the word may be part of its token."""
        announced = self.question.verdict_after
        alone = self._tokens(PROBE, announced)
        words = [*self.question.toxic, *self.question.safe]
        whole = [self._tokens(PROBE, announced + word) for word in words]
        same = min(len(alone), *map(len, whole))
        while any(ids[:same] != alone[:same] for ids in whole):
            same -= 1
        if short := [word for word, ids in zip(words, whole, strict=True) if len(ids) == same]:
            raise ModelError(f"the verdict {short[0]!r} has no token of its own")
        firsts = [ids[same] for ids in whole]
        count = len(self.question.toxic)
        toxic, safe = firsts[:count], firsts[count:]
        if both := set(toxic) & set(safe):
            token = self.tokenizer.decode([next(iter(both))])
            raise ModelError(
                f"toxic and safe verdicts of {self.settings.model} both begin with the token "
                f"{token!r}; put what they share at the end of `prefix`"
            )
        return list(dict.fromkeys(toxic)), list(dict.fromkeys(safe)), len(alone) - same


def question_of(settings: JudgeSettings) -> Question:
    """The preset with the recipe's own settings over it."""
    own: dict[str, Any] = {}
    if settings.toxic_words:
        own["toxic"] = settings.toxic_words
    if settings.safe_words:
        own["safe"] = settings.safe_words
    if settings.prefix is not None:
        own["prefix"] = settings.prefix
    if settings.preset is None:
        return Question(**own, template=settings.template)
    return replace(PRESETS[settings.preset], **own)


@dataclass
class GuardJudge:
    """The scorer: a guard with its prompt."""

    settings: JudgeSettings
    model: Any
    prompt: Prompt
    cuts: Cuts = field(default_factory=Cuts)
    verdicts: Verdicts = field(default_factory=Verdicts)

    @classmethod
    def load(cls, settings: JudgeSettings, dtype: torch.dtype = torch.float32) -> "GuardJudge":
        assert settings.model is not None
        model: Any = load_as(AutoModelForCausalLM, settings.model, "model", dtype)
        prompt = Prompt(settings, load_tokenizer(settings.model), model.config)
        return cls(settings, on_device(model).eval(), prompt)

    def score(self, pairs: Sequence[Pair], advance: Progress = lambda count: None) -> Scores:
        """P(toxic) of each (history, reply) before calibration, 0..1."""
        inputs = [self._read(pair) for pair in pairs]
        scores = np.zeros(len(inputs))
        budget = at_once(READ_AT_ONCE, self.model.device)
        for places in token_batches([*map(len, inputs)], budget, self.settings.batch_size):
            with torch.no_grad():
                scores[places] = self._probabilities([inputs[place] for place in places])
            advance(len(places))
        self.verdicts.check(self.settings.model, self.prompt.question.verdict_after)
        return scores

    def save(self, folder: Any) -> None:
        """Save nothing: the recipe names the model."""

    @property
    def remark(self) -> str:
        return self.verdicts.remark

    def _read(self, pair: Pair) -> list[int]:
        limit = _limit(self.prompt, self.model.config)
        ids = encode_within(self.prompt.shortened(pair), self.prompt.ids, len, limit, self.cuts)
        check_room(len(ids), limit)
        return ids

    def _probabilities(self, inputs: Sequence[list[int]]) -> Scores:
        """P(toxic) of inputs in one batch."""
        width = max(map(len, inputs))
        ids = torch.tensor([[0] * (width - len(one)) + one for one in inputs])
        mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in inputs])
        device = self.model.device
        reader = Reader(
            self.model, {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        )
        logits_RV = self._announced(reader) if self.prompt.question.verdict_after else reader.logits
        probabilities_RV = logits_RV.double().softmax(-1)
        toxic_R, safe_R = (
            probabilities_RV[:, tokens].sum(-1) for tokens in (self.prompt.toxic, self.prompt.safe)
        )
        mass_R = toxic_R + safe_R
        self.verdicts.count += len(inputs)
        self.verdicts.mass += float(mass_R.sum())
        return np.asarray((toxic_R / mass_R.clamp(min=1e-300)).cpu().numpy())

    def _announced(self, reader: Reader) -> Tensor:
        """The logits after the words that announce the verdict, which the model writes itself. Rows
        that do not write them keep the logits of the last token, and are counted."""
        wanted = self.prompt.question.verdict_after.rstrip()
        said = torch.zeros(len(reader.logits), 0, dtype=torch.long, device=reader.logits.device)
        found_RV, is_open = reader.logits.clone(), [True] * len(reader.logits)
        for _ in range(WRITES):
            next_R1 = reader.logits.argmax(-1, keepdim=True)
            said = torch.cat([said, next_R1], 1)
            reader.read(next_R1)
            for row, ids in enumerate(said.tolist()):
                if is_open[row]:
                    found_RV[row] = reader.logits[row]
                    text = str(self.prompt.tokenizer.decode(ids))
                    is_open[row] = not text.rstrip().endswith(wanted)
            if not any(is_open):
                break
        self.verdicts.unannounced += sum(is_open)
        return found_RV


def _limit(prompt: Prompt, config: Any) -> int:
    """The longest prompt, in tokens."""
    written = WRITES if prompt.question.verdict_after else 0
    return longest_input(prompt.settings, config, prompt.tokenizer) - written


def _check_unused(settings: JudgeSettings, question: Question) -> None:
    """Raise ModelError for settings that the preset has no place for."""
    if settings.preset is None:
        return
    text = question.template + question.last_turn
    unused = {
        "instruction": "{instruction}" not in text,
        "template_kwargs": bool(question.template),
    }
    unused |= {"human": not question.template, "bot": not question.template}
    for name in sorted(settings.model_fields_set):
        if unused.get(name):
            raise ModelError(f"preset {settings.preset} has no place for {name}; leave it out")
    if taken := RESERVED & settings.template_kwargs.keys():
        raise ModelError(f"template_kwargs: {min(taken)} is set by flatgd; leave it out")


def check_guard(settings: JudgeSettings) -> None:
    """Raise ModelError if model, template, verdicts or max_tokens do not fit. Loads no weights."""
    assert settings.model is not None
    config, tokenizer = load_config(settings.model), load_tokenizer(settings.model)
    if config.is_encoder_decoder or not speaks(config):
        raise ModelError(
            f"a guard is a causal model, which writes its verdict; {settings.model} "
            f"({config.model_type}) is not one. An encoder with a head is kind: hf"
        )
    prompt = Prompt(settings, tokenizer, config)
    check_room(len(prompt.ids(((), ""))) + 1, _limit(prompt, config))
