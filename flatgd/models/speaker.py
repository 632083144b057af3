"""A model that answers: with its dialogue format and, if it has one, a guide."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from flatgd.config.recipe import Generate
from flatgd.dialogue import Dialogue
from flatgd.models.adapters import load
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import DialogueFormat
from flatgd.models.generate import Replies, generate_replies
from flatgd.models.guides import Guide
from flatgd.models.likelihood import (
    LogProbs,
    ReplyDivergence,
    ReplyLikelihood,
    kl_to,
    score_replies,
)
from flatgd.models.loading import load_config, load_tokenizer, on_device

Advance = Callable[[int], None]


def _quiet(done: int) -> None:
    pass


def load_speaker(
    path: str, layout: Sequence[Any], dtype: torch.dtype, guide: Guide | None = None
) -> "Speaker":
    """A model on its device. `layout` is how it reads a dialogue: what `format_for` takes after the
    tokenizer."""
    dialogue_format = format_for(load_config(path), load_tokenizer(path), *layout)
    return Speaker(on_device(load(path, dtype)), dialogue_format, guide)


class Speaker(NamedTuple):
    """A model that answers histories and scores given replies."""

    model: Any
    dialogue_format: DialogueFormat
    guide: Guide | None = None

    def generate(
        self, rows: Sequence[Dialogue], settings: Generate, seed: int, advance: Advance = _quiet
    ) -> Replies:
        return generate_replies(
            self.model, self.dialogue_format, rows, settings, seed, advance, self.guide
        )

    def score(self, rows: Sequence[Dialogue], advance: Advance = _quiet) -> list[ReplyLikelihood]:
        return score_replies(
            self.model, self.dialogue_format, rows, progress=advance, log_probs=self._log_probs
        )

    def kl_to(
        self, other: "Speaker", rows: Sequence[Dialogue], advance: Advance = _quiet
    ) -> list[ReplyDivergence]:
        """KL(self || other) over given replies. Both must have the same tokens."""
        first, second = (self.model, self._log_probs), (other.model, other._log_probs)
        return kl_to(first, second, self.dialogue_format, rows, advance)

    @property
    def _log_probs(self) -> LogProbs | None:
        return self.guide.log_probs if self.guide else None

    def megabytes(self) -> float:
        """Megabytes (2^20 bytes) of its weights, and of its guide's in float32."""
        own = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return float(own + 4 * (self.guide.weights() if self.guide else 0)) / 2**20

    def models(self) -> int:
        """The number of models in memory: itself and those of its guide."""
        return 1 + (self.guide.models_held if self.guide else 0)
