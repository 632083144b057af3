"""A model that reads prompts once and then goes on from them, with a key-value cache.

Its rows can be repeated, for several replies to one history, and dropped, where a reply has ended.
Where the rows of a cache cannot be chosen (recurrent states, as Mamba's), everything is read again.

Shapes: R rows, T new tokens, V vocabulary.
"""

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from flatgd.models.encoding import Batch
from flatgd.models.heads import only_positions, output_head, unwrapped

CACHE = next(  # transformers 5.24 renames this argument and field of every decoder's output
    field.name
    for field in fields(CausalLMOutputWithPast)
    if field.name in ("cache", "past_key_values")
)
SELECTABLE = (DynamicLayer, DynamicSlidingWindowLayer)  # and no subclass, which may hold more


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
        self.ids = prompt["input_ids"]
        if "decoder_input_ids" in prompt:
            encoder = unwrapped(model).get_encoder()
            given = {"input_ids": self.ids, "attention_mask": self.mask}
            self.encoded = encoder(**given).last_hidden_state
            self.ids = prompt["decoder_input_ids"]
        output = self._output(self.ids, 1, use_cache=True)
        found = output.get(CACHE)
        self.cache = found if _can_select(found) else None
        self.logits = output.logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may come several times."""
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
        self.ids, self.mask, self.logits = self.ids[rows], self.mask[rows], self.logits[rows]
        if self.encoded is not None:
            self.encoded = self.encoded[rows]

    def read(self, ids_RT: Tensor) -> Tensor:
        """One more token of each row, or several. Returns the logits after each, [R, T, V]."""
        logits_RTV = self._read(ids_RT, torch.ones_like(ids_RT), ids_RT.shape[1])
        self.logits = logits_RTV[:, -1]
        return logits_RTV

    def logits_at(self, ids_RT: Tensor, real_RT: Tensor, wanted_RT: Tensor) -> Tensor:
        """The logits [N, V] after each of these tokens where `wanted_RT` is true, row by row. Where
        `real_RT` is false there is padding on the right. It ends the reading."""
        if self.cache is None:
            wanted_RT = torch.cat([torch.zeros_like(self.ids).bool(), wanted_RT], 1)
        with only_positions(output_head(self.model), wanted_RT):
            return self._read(ids_RT, real_RT.long(), None)

    def _read(self, ids_RT: Tensor, real_RT: Tensor, keep: int | None) -> Tensor:
        self.ids = torch.cat([self.ids, ids_RT], 1)
        if self.encoded is None:
            self.mask = torch.cat([self.mask, real_RT], 1)
        has_cache = self.cache is not None
        output = self._output(ids_RT if has_cache else self.ids, keep, has_cache)
        self.cache = output[CACHE] if has_cache else None
        logits: Tensor = output.logits
        return logits if keep is None else logits[:, -keep:]

    def _output(self, ids_RT: Tensor, keep: int | None, use_cache: bool) -> Any:
        given: dict[str, Any] = {"attention_mask": self.mask, "use_cache": use_cache}
        if self.cache is not None:
            given[CACHE] = self.cache
        if self.encoded is not None:
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.encoded)
            given["decoder_input_ids"] = ids_RT
        else:
            given["input_ids"] = ids_RT
            positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -ids_RT.shape[1] :]
            more = {"position_ids": positions, "logits_to_keep": keep}
            given |= {k: v for k, v in more.items() if k in self._takes and v is not None}
        return self.model(**given)


def _can_select(cache: Any) -> bool:
    """Whether a cache holds nothing but keys and values, row by row."""
    is_two = isinstance(cache, EncoderDecoderCache)
    parts = [cache.self_attention_cache, cache.cross_attention_cache] if is_two else [cache]
    layers = [layer for part in parts for layer in getattr(part, "layers", [])]
    return bool(layers) and all(type(layer) in SELECTABLE for layer in layers)
