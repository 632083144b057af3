"""Guides change a model's next-token distribution while plain `generate` runs it.

    log p = log p_LM + strength * shift, normalised again

Each guide has its own shift; strength 0 is the unchanged model, token for token. A guide provides a
LogitsProcessor for generation, and the same distribution over given replies for scoring:

    processor = guide.processor(model, prompt)
    model.generate(**prompt, do_sample=True, logits_processor=[processor])

The processor applies temperature and nucleus itself, because DExperts takes the nucleus from p_LM
before the shift. Pass both to the processor and not to `generate`.

Shapes: R rows of a generation (prompts x replies), V vocabulary, N, B, T as in heads.py.
"""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.modeling_outputs import CausalLMOutputWithPast

from flatgd.models.encoding import Batch
from flatgd.models.heads import output_head

CACHE = next(  # transformers 5.24 renames this argument and field of every decoder's output
    field.name
    for field in fields(CausalLMOutputWithPast)
    if field.name in ("cache", "past_key_values")
)
Shift = Callable[[Tensor], Tensor]  # token ids so far -> [R, V]


class Guide(ABC):
    """A way of decoding."""

    strength: float
    models_held: int = 0
    """Models that it keeps in memory beside the one it steers."""

    @abstractmethod
    def log_probs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probabilities [N, V] at each reply token of given replies, without a nucleus."""

    @abstractmethod
    def processor(
        self, model: nn.Module, prompt: Batch, temperature: float = 1.0, top_p: float = 1.0
    ) -> LogitsProcessor:
        """The processor for one call of `model.generate(**prompt)`."""

    @abstractmethod
    def weights(self) -> int:
        """The number of weights that it keeps in memory beside the model's."""


class GuideProcessor(LogitsProcessor):
    """Temperature, nucleus, then the shift. The processor keeps a reference to `kept`."""

    def __init__(
        self, shift: Shift, strength: float, temperature: float, top_p: float, kept: Any = None
    ):
        self.shift, self.strength, self.kept = shift, strength, kept
        self.warpers: list[LogitsProcessor] = []
        if temperature != 1.0:
            self.warpers.append(TemperatureLogitsWarper(temperature))
        if top_p < 1.0:
            self.warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        return scores + self.strength * self.shift(input_ids).to(scores.dtype)


class Stream:
    """An expert that reads along while another model generates: one token a step, with a cache.

    If rows change places, as in beam search, it reads them again from the beginning.
    """

    def __init__(self, model: nn.Module, prompt: Batch):
        self.model, self.prompt = model, prompt
        self.is_encoder_decoder = "decoder_input_ids" in prompt
        self.begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
        self.ids: Tensor | None = None
        self.cache: Any = None
        self.spoken = self.last = torch.empty(0)
        self.fixed: dict[str, Any] = {}

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities of the next token [R, V], log p of the reply so far [R])."""
        known = self.ids
        if known is None or known.shape[0] != ids.shape[0] or not torch.equal(known, ids[:, :-1]):
            self._restart(ids)
        new = ids if self.ids is None else ids[:, self.ids.shape[1] :]
        with torch.no_grad():
            given = {CACHE: self.cache, **self._inputs(ids, new)}
            output = self.model(**given, use_cache=True)
        self.cache = output[CACHE]
        wanted = ids.shape[1] - self.begin + 1 if self.ids is None else 1
        log_q_RTV = output.logits[:, -wanted:].float().log_softmax(-1)
        if self.ids is None:  # score the reply so far, each token given those before it
            said = ids[:, self.begin :]
            self.spoken = log_q_RTV[:, :-1].gather(-1, said[..., None])[..., 0].sum(1)
        else:
            self.spoken = self.spoken + self.last.gather(-1, ids[:, -1:])[:, 0]
        self.ids, self.last = ids, log_q_RTV[:, -1]
        return self.last, self.spoken

    def _restart(self, ids: Tensor) -> None:
        self.ids, self.cache = None, None
        repeat = ids.shape[0] // self.prompt["input_ids"].shape[0]
        mask = self.prompt["attention_mask"]
        self.mask = mask.repeat_interleave(repeat, 0)
        if self.is_encoder_decoder:
            encoder: Any = self.model.get_encoder()  # type: ignore[operator]
            with torch.no_grad():
                states = encoder(input_ids=self.prompt["input_ids"], attention_mask=mask)
            states.last_hidden_state = states.last_hidden_state.repeat_interleave(repeat, 0)
            self.fixed = {"encoder_outputs": states}

    def _inputs(self, ids: Tensor, new: Tensor) -> dict[str, Any]:
        if self.is_encoder_decoder:
            return {**self.fixed, "attention_mask": self.mask, "decoder_input_ids": new}
        more = self.mask.new_ones(ids.shape[0], ids.shape[1] - self.mask.shape[1])
        mask = torch.cat([self.mask, more], 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        fed = {"input_ids": new, "attention_mask": mask, "position_ids": positions}
        # without the prompt's logits: [rows, prompt, vocabulary] takes gigabytes
        return {**fed, "logits_to_keep": ids.shape[1] - self.begin + 1 if self.ids is None else 1}


class HeadInput:
    """The input of a model's output head, its last hidden states, which a hook stores in `last`.

    Use it as a context manager, or with `attach` for as long as this object exists.
    """

    last: Tensor

    def __init__(self, model: nn.Module):
        self._head = output_head(model)

    def attach(self) -> Self:
        me = weakref.ref(self)

        def see(_: nn.Module, args: tuple[Tensor]) -> None:
            if (seen := me()) is not None:
                seen.last = args[0]

        self._handle = self._head.register_forward_pre_hook(see)
        weakref.finalize(self, self._handle.remove)
        return self

    def __enter__(self) -> Self:
        return self.attach()

    def __exit__(self, *error: object) -> None:
        self._handle.remove()
