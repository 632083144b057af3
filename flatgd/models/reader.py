"""A model that reads prompts once and then goes on from them, with a key-value cache.

Its rows can be repeated, for several replies to one history, and dropped, where a reply has ended.

Shapes: R rows, T new tokens, V vocabulary.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from flatgd.models.encoding import Batch
from flatgd.models.guides import CACHE
from flatgd.models.heads import only_positions, output_head, unwrapped


class Reader:
    """`logits` [R, V] are those of each row's next token. The prompt is a batch of
    DialogueFormat.prompt: padded on the left for causal models."""

    logits: Tensor

    def __init__(self, model: nn.Module, prompt: Batch):
        self.model = model
        self.mask = prompt["attention_mask"]
        self.cache: Any = None
        self.encoded: Tensor | None = None
        accepted = inspect.signature(unwrapped(model).forward).parameters
        self._takes = {"position_ids", "logits_to_keep"} & accepted.keys()
        first = prompt["input_ids"]
        if "decoder_input_ids" in prompt:
            encoder = unwrapped(model).get_encoder()
            self.encoded = encoder(input_ids=first, attention_mask=self.mask).last_hidden_state
            first = prompt["decoder_input_ids"]
        self.logits = self._forward(first, 1)[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        self.cache.batch_select_indices(rows)
        self.mask, self.logits = self.mask[rows], self.logits[rows]
        if self.encoded is not None:
            self.encoded = self.encoded[rows]

    def read(self, ids_RT: Tensor) -> None:
        """One more token of each row, or several."""
        self._see(torch.ones_like(ids_RT))
        self.logits = self._forward(ids_RT, 1)[:, -1]

    def logits_at(self, ids_RT: Tensor, real_RT: Tensor, wanted_RT: Tensor) -> Tensor:
        """The logits [N, V] after each of these tokens where `wanted_RT` is true, row by row. Where
        `real_RT` is false there is padding on the right. It ends the reading."""
        self._see(real_RT.long())
        with only_positions(output_head(self.model), wanted_RT):
            return self._forward(ids_RT, None)

    def _see(self, real_RT: Tensor) -> None:
        if self.encoded is None:
            self.mask = torch.cat([self.mask, real_RT], 1)

    def _forward(self, ids_RT: Tensor, keep: int | None) -> Tensor:
        given: dict[str, Any] = {CACHE: self.cache, "attention_mask": self.mask, "use_cache": True}
        if self.encoded is not None:
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.encoded)
            given["decoder_input_ids"] = ids_RT
        else:
            given["input_ids"] = ids_RT
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids_RT.shape[1] :]
            more = {"position_ids": positions, "logits_to_keep": keep}
            given |= {k: v for k, v in more.items() if k in self._takes and v is not None}
        output = self.model(**given)
        self.cache = output[CACHE]
        logits: Tensor = output.logits
        return logits
