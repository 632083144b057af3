"""Sampled replies to histories, the same sampling for every model."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from flatgd.config.recipe import Generate
from flatgd.dialogue import Dialogue
from flatgd.models.batching import HELD_AT_ONCE, at_once, token_batches
from flatgd.models.dialogue_format import declared_stops
from flatgd.models.encoding import DialogueFormat
from flatgd.models.guides import Guide
from flatgd.models.sampling import sample, uniform_numbers
from flatgd.runtime import distributed

Progress = Callable[[int], None]


class Replies(NamedTuple):
    """The replies to each history, the number of their tokens, and the seconds of sampling."""

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

    Histories of similar length form a batch. Each history has its own seed, so up to rounding the
    result depends only on the seed and the histories. Several processes divide the batches among
    them. A reply ends at any end token that the checkpoint declares or that training used. The
    checkpoint's other generation settings are ignored.
    """
    encoded = dialogue_format.encode_histories(dialogues)
    stops = declared_stops(model, dialogue_format)
    model.eval()
    lengths = [len(e.history_ids) + settings.max_new_tokens for e in encoded]
    budget = at_once(HELD_AT_ONCE, model.device) // settings.samples
    batches = list(token_batches(lengths, budget, settings.batch_size))
    replies: dict[int, list[str]] = {}
    tokens, seconds = 0, 0.0
    for rows in batches[distributed.rank() :: distributed.count()]:
        prompt = {
            k: v.to(model.device)
            for k, v in dialogue_format.prompt([encoded[i] for i in rows]).items()
        }
        uniform = torch.stack(
            [uniform_numbers(seed, i, settings.samples, settings.max_new_tokens) for i in rows]
        )
        begun = time.perf_counter()
        with torch.no_grad():
            how = settings.temperature, settings.top_p
            processor = guide.processor(model, prompt, *how) if guide else None
            said = sample(model, prompt, settings, stops, uniform, processor)
        seconds += time.perf_counter() - begun
        tokens += sum(map(len, said))
        texts = [dialogue_format.said(ids, stops) for ids in said]
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
