"""Sampled replies to histories, the same sampling for every model."""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from flatgd.families import EncoderDecoder, Example, Family
from flatgd.recipe import Generate
from flatgd.records import Dialogue

Progress = Callable[[int], None]


def generate_replies(
    model: PreTrainedModel,
    family: Family,
    dialogues: Sequence[Dialogue],
    settings: Generate,
    seed: int,
    progress: Progress = lambda done: None,
) -> list[list[str]]:
    """`settings.samples` replies to the history of each dialogue, in the order given.

    Histories of like length are answered together; each such batch draws from its own seed, so the
    outcome depends on the seed, the histories and the batch size alone. The checkpoint's own
    generation settings are set aside but for its token ids.
    """
    encoded = [
        Example(family.history(row.history, row.system)[0], [], True, 0) for row in dialogues
    ]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].history_ids))
    replies: list[list[str]] = [[] for _ in encoded]
    config = _generation_config(family, settings)
    model.generation_config = GenerationConfig(**_token_ids(family))
    model.eval()
    for start in range(0, len(order), settings.batch_size):
        rows = order[start : start + settings.batch_size]
        prompt = {
            k: v.to(model.device) for k, v in family.prompt([encoded[i] for i in rows]).items()
        }
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed + start)
            output = model.generate(**prompt, generation_config=config)  # type: ignore[operator]
        begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
        texts = family.tokenizer.batch_decode(output[:, begin:], skip_special_tokens=True)
        for place, row in enumerate(rows):
            answers = texts[place * settings.samples : (place + 1) * settings.samples]
            replies[row] = [" ".join(text.split()) for text in answers]
        progress(len(rows))
    return replies


def _generation_config(family: Family, settings: Generate) -> GenerationConfig:
    return GenerationConfig(
        do_sample=True,
        num_beams=1,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        min_new_tokens=settings.min_new_tokens,
        max_new_tokens=settings.max_new_tokens,
        num_return_sequences=settings.samples,
        **_token_ids(family),
    )


def _token_ids(family: Family) -> dict[str, int]:
    ids = {"eos_token_id": family.end, "pad_token_id": family.pad}
    if isinstance(family, EncoderDecoder):
        ids["decoder_start_token_id"] = family.start[0]
    return ids
