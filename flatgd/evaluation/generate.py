"""Sampled replies to histories, the same sampling for every model."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from flatgd.models import Example, Family
from flatgd.recipe import Generate

Progress = Callable[[int], None]


def generate_replies(
    model: PreTrainedModel,
    family: Family,
    histories: Sequence[tuple[str, ...]],
    settings: Generate,
    seed: int,
    progress: Progress = lambda done: None,
) -> list[list[str]]:
    """`settings.samples` replies to each history, in the order given.

    Histories of like length are answered together; each such batch draws from its own seed, so the
    outcome depends on the seed, the histories and the batch size alone. The checkpoint's own
    generation settings are set aside but for its token ids.
    """
    encoded = [
        Example(family.history_ids(turns)[-family.max_history_tokens :], [], True, 0)
        for turns in histories
    ]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].history_ids))
    replies: list[list[str]] = [[] for _ in encoded]
    config = _generation_config(model, family, settings)
    model.generation_config = GenerationConfig(**_token_ids(model, family))
    model.eval()
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        prompt = {
            k: v.to(model.device) for k, v in family.prompt([encoded[i] for i in rows]).items()
        }
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + start)
            output = model.generate(**prompt, generation_config=config)  # type: ignore[operator]
        begin = 0 if model.config.is_encoder_decoder else prompt["input_ids"].shape[1]
        texts = family.tokenizer.batch_decode(output[:, begin:], skip_special_tokens=True)
        for place, row in enumerate(rows):
            answers = texts[place * settings.samples : (place + 1) * settings.samples]
            replies[row] = [" ".join(text.split()) for text in answers]
        progress(len(rows))
    return replies


def _generation_config(
    model: PreTrainedModel, family: Family, settings: Generate
) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        num_beams=1,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        min_new_tokens=settings.min_new_tokens,
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=settings.samples,
        **_token_ids(model, family),
    )


def _token_ids(model: PreTrainedModel, family: Family) -> dict[str, int]:
    ids = {"eos_token_id": family.end, "pad_token_id": family.pad}
    if model.config.is_encoder_decoder:
        ids["decoder_start_token_id"] = int(model.config.decoder_start_token_id)
    return ids
