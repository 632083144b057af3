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
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from flatgd.models.encoding import Batch
from flatgd.models.heads import output_head
from flatgd.models.reader import Reader

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
        self.begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
        self.ids: Tensor | None = None
        self.spoken = self.last = torch.empty(0)

    @torch.no_grad()
    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(log-probabilities of the next token [R, V], log p of the reply so far [R])."""
        known = self.ids
        if known is None or known.shape[0] != ids.shape[0] or not torch.equal(known, ids[:, :-1]):
            self._restart(len(ids))
            known = ids[:, : self.begin]
        new = ids[:, known.shape[1] :]
        if new.shape[1]:
            # each token's probability given those before it
            after_RTV = self.reader.read(new).float().log_softmax(-1)
            before_RTV = torch.cat([self.last[:, None], after_RTV[:, :-1]], 1)
            self.spoken = self.spoken + before_RTV.gather(-1, new[..., None])[..., 0].sum(1)
            self.last = after_RTV[:, -1]
        self.ids = ids
        return self.last, self.spoken

    def _restart(self, rows: int) -> None:
        """Read the prompt, once for all the rows that belong to it."""
        repeat = rows // len(self.prompt["input_ids"])
        self.reader = Reader(self.model, self.prompt)
        numbers = torch.arange(rows, device=self.prompt["input_ids"].device)
        self.reader.select(numbers // repeat)
        self.last = self.reader.logits.float().log_softmax(-1)
        self.spoken = self.last.new_zeros(rows)


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
