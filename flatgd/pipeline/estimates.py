"""How much memory each stage of a recipe takes, and on which cards it fits.

Trainings are estimated in training_memory.py. For the other stages:

    generation  weights; the key-value cache of the replies sampled at once; the distributions from
                which their next tokens are drawn
    scoring     weights of the model and of the scorer; hidden states and logits of one batch
    judges      weights and one batch; a judge that is tuned here also has gradients and moments

On a CPU the weights' file is mapped into memory while it is loaded, and counts then. Lengths are
those of a sample of the test histories.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from flatgd.config.judge import JudgeSettings
from flatgd.config.names import EXPERTS
from flatgd.data.sets import ordinary_dialogue
from flatgd.methods import Method
from flatgd.models.batching import HELD_AT_ONCE, READ_AT_ONCE, at_once
from flatgd.models.dialogue_format import format_for
from flatgd.models.dtype import checkpoint_dtype
from flatgd.models.likelihood import CHUNK
from flatgd.models.loading import DEVICE, load_config, load_tokenizer, on_meta
from flatgd.pipeline.plan import Plan, histories_to_answer
from flatgd.pipeline.training_memory import Memory, of_method, weight_bytes

SAMPLED = 64  # test histories whose lengths are measured
TRAINED = 512  # the same of training rows
DRAWING = 32  # bytes of each probability while a token is drawn: scores, nucleus, sums in float64
CARDS = (24, 48, 80)  # GB
USABLE = 0.9  # of a card; the rest is lost to fragmentation
CONTEXT = 0.75 * 2**30  # bytes that CUDA itself takes


class Lengths(NamedTuple):
    """Tokens: of the mean test history, of the longest sampled reply, and of the longest history
    and reply of the training rows, which add up to the longest row."""

    history: float
    reply: int
    trained: tuple[int, int]


def memory_of(
    plan: Plan, lengths: Lengths, processes: int = 1, strategy: str = "ddp"
) -> dict[str, Memory]:
    """Memory of each stage of a validated recipe."""
    recipe = plan.recipe
    found = {"experts": training(plan, EXPERTS[1], lengths, processes, strategy)}
    for name in recipe.methods:
        if issubclass(plan.model(name).kind, Method):
            found[name] = training(plan, name, lengths, processes, strategy)
    found["generation"] = generation(plan, lengths)
    judges = {
        f"judge {judge.label}": judging(judge, plan.judge_dtype(judge), lengths)
        for judge in recipe.judges
        if judge.kind != "linear"
    }
    alone = scoring(plan, lengths)
    found["scoring"] = replace(  # with all judges loaded beside the model and the scorer
        alone,
        weights=alone.weights + sum(judge.weights for judge in judges.values()),
        activations=max([alone.activations, *(judge.activations for judge in judges.values())]),
    )
    return found | judges


def training(
    plan: Plan,
    name: str,
    lengths: Lengths,
    processes: int = 1,
    strategy: str = "ddp",
    rows: int | None = None,
) -> Memory:
    """Memory of the training of an expert or of a method, in micro-batches of `rows`."""
    recipe, kind = plan.recipe, plan.model(name).kind
    assert issubclass(kind, Method)
    other = load_config(recipe.expert_backbone) if recipe.expert_backbone else None
    config = load_config(recipe.base_of(name))
    return of_method(
        plan.config(name, recipe.output),
        kind,
        config,
        other if kind.needs else None,
        processes,
        strategy,
        rows,
        plan.base_dtype(name),
        plan.dtype(EXPERTS[0]),
        plan.config(EXPERTS[0], recipe.output).lora_rank,
        lengths.trained,
    )


def generation(plan: Plan, lengths: Lengths) -> Memory:
    """Memory of the stage that answers the test histories, for the largest of the models."""
    recipe, settings = plan.recipe, plan.recipe.generate
    config = load_config(recipe.backbone)
    dtype = plan.dtype("backbone")
    each = lengths.history + settings.max_new_tokens
    budget = at_once(HELD_AT_ONCE, torch.device(DEVICE))
    histories = min(settings.batch_size, max(1, int(budget / settings.samples / each)))
    rows = histories * settings.samples
    text = config.get_text_config()
    cache = rows * each * cache_bytes(config, dtype)
    return _loaded(
        recipe.backbone,
        dtype,
        Memory(
            weight_bytes(on_meta(config), dtype.itemsize),
            activations=cache,
            buffers=rows * text.vocab_size * DRAWING,
        ),
    )


def scoring(plan: Plan, lengths: Lengths) -> Memory:
    """Memory of the stage that scores replies, with the model and the scorer loaded, but without
    judges. With ordinary dialogue the backbone is loaded beside the model."""
    recipe, budget = plan.recipe, at_once(READ_AT_ONCE, torch.device(DEVICE))
    models = 2 if ordinary_dialogue(plan.sets.test) else 1
    roles = [(recipe.backbone, plan.dtype("backbone"))] * models
    if recipe.scorer:
        roles.append((recipe.scorer, plan.dtype_of_role("scorer", recipe.scorer)))
    weights = passes = buffers = 0.0
    for name, dtype in roles:
        config = load_config(name)
        text = config.get_text_config()
        weights += weight_bytes(on_meta(config), dtype.itemsize)
        replies = budget * lengths.reply / (lengths.reply + lengths.history)
        both = models if name == recipe.backbone else 1  # a divergence needs the logits of both
        logits = both * (replies * dtype.itemsize + 2 * CHUNK * 4)
        passes = max(passes, budget * state_bytes(config, dtype))
        buffers = max(buffers, logits * text.vocab_size)
    largest, dtype = roles[-1]
    return _loaded(largest, dtype, Memory(weights, activations=passes, buffers=buffers))


def judging(judge: JudgeSettings, dtype: torch.dtype, lengths: Lengths) -> Memory:
    """Memory of a judge that is a transformer."""
    config = load_config(str(judge.model))
    kinds = {"hf": AutoModelForSequenceClassification, "guard": None}
    model = on_meta(config, kinds.get(judge.kind, AutoModel))
    if judge.kind == "trained":
        return _tuning(judge, model, lengths)
    tokens = judge.batch_size * _tokens(judge, lengths)
    if judge.kind in ("embedding", "guard"):
        tokens = min(tokens, at_once(READ_AT_ONCE, torch.device(DEVICE)))
    passes = tokens * state_bytes(config, dtype)
    memory = Memory(weight_bytes(model, dtype.itemsize), activations=passes)
    return _loaded(str(judge.model), dtype, memory)


def _tuning(judge: JudgeSettings, model: Any, lengths: Lengths) -> Memory:
    """Memory of a judge that is tuned here, its weights in float32."""
    layers = model.config.get_text_config().num_hidden_layers
    tuned = min(1.0, (judge.top_layers or layers) / layers)
    weights = weight_bytes(model)
    tokens = judge.train_batch_size * _tokens(judge, lengths)
    return Memory(
        weights,
        gradients=tuned * weights,
        optimizer=2 * tuned * weights,
        activations=tokens * tuned * layers * state_bytes(model.config, torch.float32),
    )


def _tokens(judge: JudgeSettings, lengths: Lengths) -> int:
    """Tokens of a long input."""
    return min(judge.max_tokens, int(2 * (lengths.history + lengths.reply)))


def cache_bytes(config: Any, dtype: torch.dtype) -> float:
    """Bytes that the key-value cache holds for each token of a row."""
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    layers = getattr(text, "decoder_layers", None) or text.num_hidden_layers
    both = 2 if config.is_encoder_decoder else 1  # attention to the encoder is cached too
    return float(2 * both * layers * keys * width * dtype.itemsize)


def state_bytes(config: Any, dtype: torch.dtype) -> float:
    """Bytes of one layer's hidden states for each token, in a pass without gradients."""
    text = config.get_text_config()
    names = ("intermediate_size", "decoder_ffn_dim", "d_ff", "n_inner")
    inner = next((value for n in names if (value := getattr(text, n, None))), 4 * text.hidden_size)
    return float((3 * inner + 6 * text.hidden_size) * dtype.itemsize)


def _loaded(name: str, dtype: torch.dtype, memory: Memory) -> Memory:
    """With the file's own pages, if they outweigh what the stage takes later. On a GPU they are not
    in its memory."""
    if DEVICE != "cpu":
        return memory
    own = checkpoint_dtype(name) or torch.float32
    pages = memory.weights / dtype.itemsize * own.itemsize if own != dtype else 0.0
    later = memory.total - memory.weights
    return replace(memory, buffers=memory.buffers + max(0.0, pages - later))


def lengths_of(plan: Plan) -> Lengths:
    """The lengths of a sample of the recipe's rows."""
    recipe, sets, name = plan.recipe, plan.sets, plan.recipe.backbone
    made = format_for(load_config(name), load_tokenizer(name), *recipe.layout)
    histories = made.encode_histories(histories_to_answer(recipe, sets)[:SAMPLED])
    mean = sum(len(e.history_ids) for e in histories) / max(1, len(histories))
    rows = made.encode_all(sets.policy[:: max(1, len(sets.policy) // TRAINED)])
    reply = max(len(e.reply_ids) for e in rows)
    whole = max(len(e.history_ids) + len(e.reply_ids) for e in rows)
    return Lengths(mean, recipe.generate.max_new_tokens, (max(1, whole - reply), reply))


def fits(plan: Plan, name: str, lengths: Lengths) -> Iterator[tuple[int, int]]:
    """For each of CARDS, in GB, the largest micro-batch of a training that fits; 0 if none does."""
    config = plan.config(name, plan.recipe.output)
    one, two = (training(plan, name, lengths, rows=rows).total for rows in (1, 2))
    for card in CARDS:
        yield card, rows_that_fit(one, two, card, config.per_device_train_batch_size)


def rows_that_fit(one: float, two: float, card: float, most: int) -> int:
    """The largest micro-batch, if one row takes `one` bytes and two take `two`."""
    room = USABLE * card * 2**30 - CONTEXT - one
    return 0 if room < 0 else min(1 + int(room / max(two - one, 1.0)), most)
