"""Sampled replies to histories, the same sampling for every model."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from flatgd.config.recipe import Generate
from flatgd.dialogue import Dialogue
from flatgd.models.dialogue_format import EncoderDecoder, declared_stops
from flatgd.models.encoding import Batch, DialogueFormat
from flatgd.models.guides import Guide
from flatgd.runtime import distributed

Progress = Callable[[int], None]


class Replies(NamedTuple):
    """The replies to each history, the number of their tokens, and the seconds in `generate`."""

    texts: list[list[str]]
    tokens: int
    seconds: float


def generate_replies(
    model: PreTrainedModel,
    dialogue_format: DialogueFormat,
    dialogues: Sequence[Dialogue],
    settings: Generate,
    seed: int,
    progress: Progress = lambda done: None,
    guide: Guide | None = None,
) -> Replies:
    """`settings.samples` replies to the history of each dialogue, in the order of `dialogues`. A
    `guide` steers the model.

    Histories of similar length form a batch, and each batch has its own seed, so the result depends
    only on the seed, the histories and the batch size. Several processes divide the batches among
    them. A reply ends at any end token that the checkpoint declares or that training used. The
    checkpoint's other generation settings are ignored.
    """
    encoded = dialogue_format.encode_histories(dialogues)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].history_ids))
    replies: dict[int, list[str]] = {}
    stops = declared_stops(model, dialogue_format)
    config = _generation_config(dialogue_format, settings, guide is not None, stops)
    tokens, seconds = 0, 0.0
    model.generation_config = GenerationConfig(**_token_ids(dialogue_format, stops))
    model.eval()
    starts = range(0, len(order), settings.batch_size)
    for start in starts[distributed.rank() :: distributed.count()]:
        rows = order[start : start + settings.batch_size]
        prompt = {
            k: v.to(model.device)
            for k, v in dialogue_format.prompt([encoded[i] for i in rows]).items()
        }
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + start)
            begun = time.perf_counter()
            output = model.generate(  # type: ignore[operator]
                **prompt,
                generation_config=config,
                logits_processor=_processors(model, prompt, settings, guide),
            )
            seconds += time.perf_counter() - begun
        begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
        tokens += _tokens(output[:, begin:], stops)
        texts = [dialogue_format.said(ids, stops) for ids in output[:, begin:].tolist()]
        for place, row in enumerate(rows):
            replies[row] = texts[place * settings.samples : (place + 1) * settings.samples]
        progress(len(rows) * distributed.count())
    parts = distributed.gathered((replies, tokens, seconds))
    merged = {row: texts for part, _, _ in parts for row, texts in part.items()}
    return Replies(
        [merged[row] for row in range(len(encoded))],
        sum(tokens for _, tokens, _ in parts),
        max(seconds for _, _, seconds in parts),
    )


def _processors(
    model: PreTrainedModel, prompt: Batch, settings: Generate, guide: Guide | None
) -> LogitsProcessorList | None:
    if guide is None:
        return None
    processor = guide.processor(model, prompt, settings.temperature, settings.top_p)
    return LogitsProcessorList([processor])


def _tokens(said: Tensor, stops: list[int]) -> int:
    """The number of generated tokens, each reply's end token included."""
    is_end = torch.isin(said, torch.tensor(stops, device=said.device))
    ended = is_end.cumsum(1) - is_end.long()
    return int((ended == 0).sum())


def _generation_config(
    dialogue_format: DialogueFormat, settings: Generate, is_guided: bool, stops: list[int]
) -> GenerationConfig:
    """The settings of `generate`. A guide applies temperature and nucleus itself."""
    return GenerationConfig(
        do_sample=True,
        num_beams=1,
        temperature=1.0 if is_guided else settings.temperature,
        top_p=1.0 if is_guided else settings.top_p,
        top_k=0,
        min_new_tokens=settings.min_new_tokens,
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=settings.samples,
        **_token_ids(dialogue_format, stops),
    )


def _token_ids(dialogue_format: DialogueFormat, stops: list[int]) -> dict[str, Any]:
    ids: dict[str, Any] = {"eos_token_id": stops, "pad_token_id": dialogue_format.pad}
    if isinstance(dialogue_format, EncoderDecoder):
        ids["decoder_start_token_id"] = dialogue_format.start[0]
    return ids
