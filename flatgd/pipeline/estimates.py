"""How much memory and disk space a recipe takes, from configurations alone.

Memory of a training in each process; sizes in bytes, float32 weights. The number of weights gives
weights, gradients and optimizer. Activations are measured: the model is built without weights on
torch's meta device, one micro-batch of the longest rows runs through it, and the estimate adds up
what autograd would keep.

    weights      the policy's, and those of both experts or of their heads
    gradients    copies of the trainable weights. plain: 1. finite_difference: 4 in the second pass
                 (safety gradient, rest, sum, original weights). fast: 3. exact: 4
    optimizer    AdamW's two moments
    activations  of one micro-batch; about three times as much for exact, with its second graph
    head         the fused head's chunk, or the logits

Disk space of a run's folder:

    models       float32 weights of each trained or merged model, or its adapter, and its snapshots,
                 for each seed; trained judges
    states       the experts' states of an `expert_cache`, as if every row had full length
    text         replies and scores, a quarter of a kilobyte each
    checkpoints  of the training under way: the last two and the one being written, each with
                 Adam's two moments

The estimate of disk space is nearly an upper bound: it counts entries that share files apart.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel

from flatgd.config.names import EXPERTS
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets
from flatgd.io.files import free_bytes
from flatgd.losses.fused import tokens_at_once
from flatgd.methods import METHODS, Clean, Method
from flatgd.models.loading import load_config, on_meta
from flatgd.pipeline.plan import histories_to_answer, training_config
from flatgd.training.checkpoints import CHECKPOINTS_KEPT
from flatgd.training.config import CHECKPOINTING

REPLY_BYTES = 256
OTHER_BYTES = 4 * 2**20  # for each model: tokenizer and logs; report, linear judge
FLOAT = 4
COPIES = {"plain": 1, "finite_difference": 4, "fast": 3, "exact": 4}


@dataclass(frozen=True)
class Memory:
    """Memory of a training in each process, in bytes."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head

    def __str__(self) -> str:
        parts = ", ".join(f"{f.name} {size(getattr(self, f.name))}" for f in fields(self))
        return f"{size(self.total)} in each process ({parts})"


def estimate(
    config: Any,
    rows: int,
    history_tokens: int,
    reply_tokens: int,
    *,
    method: str = "finite_difference",
    processes: int = 1,
    strategy: str = "ddp",
    lora_rank: int = 0,
    lora_targets: Any = "all-linear",
    experts: str = "full",
    expert_config: Any = None,
    fused: bool = True,
    half: bool = False,
    checkpointing: bool = False,
    running_mean: bool = False,
) -> Memory:
    """Memory of a training of a model with transformers' `config` in micro-batches of `rows` rows.

    `method`: how the penalty is computed, or plain. `experts`: full, of `expert_config` if they are
    of another size; adapters (on the policy's own base), cached (states on disk), none. `half`:
    bf16 autocast. `running_mean`: of the penalised gradient, beside Adam's two. Under fsdp2
    weights, gradients and optimizer are shared out over the processes, the experts are not.
    """
    model = on_meta(config)
    base = weight_bytes(model)
    adapter = adapter_bytes(model, lora_rank, lora_targets) if lora_rank else 0
    trained = adapter or base
    head = model.get_output_embeddings().weight
    expert = on_meta(expert_config) if expert_config else model
    of_expert = {
        "full": weight_bytes(expert),
        "adapters": adapter,
        "cached": expert.get_output_embeddings().weight.numel() * FLOAT,
        "none": 0,
    }[experts]
    shards = processes if strategy == "fsdp2" else 1
    kept, tokens = _activations(model, rows, history_tokens, reply_tokens, half, checkpointing)
    in_chunk = min(tokens, tokens_at_once(head)) if fused and method != "exact" else tokens
    # of [tokens, vocabulary] in float32; exact differentiates each twice
    buffers = 20 if method == "exact" else 8 if fused else 10
    return Memory(
        weights=(base + adapter) / shards + 2 * of_expert,
        gradients=COPIES[method] * trained / shards,
        optimizer=(3 if running_mean else 2) * trained / shards,
        activations=kept * (3 if method == "exact" else 1),
        head=buffers * in_chunk * head.shape[0] * FLOAT,
    )


def of_method(
    settings: Any,
    kind: type[Method],
    config: Any,
    expert_config: Any,
    processes: int,
    strategy: str,
) -> Memory:
    """Memory of a training with a FlatGDConfig. Experts count as full models, or as adapters on the
    policy's base if the policy is an adapter."""
    flat = kind.is_flat and settings.penalty_settings() is not None
    experts = "none"
    if kind.needs:
        shared = settings.lora_rank and expert_config is None
        experts = "cached" if settings.expert_cache else "adapters" if shared else "full"
    return estimate(
        config,
        settings.micro_batch_size or settings.per_device_train_batch_size,
        settings.max_history_tokens,
        settings.max_reply_tokens,
        method=settings.flatness_method if flat else "plain",
        processes=processes,
        strategy=strategy,
        lora_rank=settings.lora_rank,
        lora_targets=settings.lora_targets,
        experts=experts,
        expert_config=expert_config,
        fused=settings.fused_head and bool(kind.needs),
        half=settings.bf16,
        checkpointing=settings.is_checkpointed,
        running_mean=flat and settings.penalty_momentum > 0,
    )


def size(count: float) -> str:
    """Bytes as text, in MB or GB."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def weight_bytes(model: nn.Module) -> int:
    """All weights in float32."""
    return sum(p.numel() for p in model.parameters()) * FLOAT


def adapter_bytes(model: nn.Module, rank: int, targets: Any) -> int:
    """Two matrices of that rank on each layer."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and (layer is not head if targets == "all-linear" else name.split(".")[-1] in targets)
    ]
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers) * FLOAT


def _activations(
    model: Any, rows: int, history: int, reply: int, half: bool, checkpointing: bool
) -> tuple[int, int]:
    """(bytes that autograd keeps of the model's body, reply tokens) of one micro-batch."""
    if checkpointing:
        getattr(model, f"{CHECKPOINTING}_enable")({"use_reentrant": False})
    model.train()
    weights = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(tensor)  # keeps its address from being used again
        return tensor

    alive: list[Tensor] = []
    ids = torch.zeros(rows, history, dtype=torch.long, device="meta")
    said = torch.zeros(rows, reply, dtype=torch.long, device="meta")
    decoded = reply if model.config.is_encoder_decoder else history + reply
    seen = torch.ones(rows, 1, decoded, decoded, device="meta")  # a mask; its values do not matter
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": ids, "decoder_input_ids": said, "decoder_attention_mask": seen}
    else:
        inputs = {"input_ids": torch.cat([ids, said], 1), "attention_mask": seen}
    precision = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        model.base_model(**inputs, use_cache=False)
    return sum(kept.values()), rows * reply


def memory_of(recipe: Recipe, processes: int, strategy: str) -> dict[str, Memory]:
    """Memory of each training of a validated recipe, by method."""
    config = load_config(recipe.backbone)
    expert = load_config(recipe.expert_backbone) if recipe.expert_backbone else None
    found = {}
    for name in recipe.methods:
        kind = METHODS[recipe.kind_of(name)]
        if issubclass(kind, Method):
            settings = training_config(recipe, recipe.overrides(name), recipe.output, kind)
            found[name] = of_method(settings, kind, config, expert, processes, strategy)
    return found


class Disk(NamedTuple):
    """Disk space of a run, in bytes."""

    kept: float
    """When the run is finished."""
    peak: float
    """While it runs."""

    def __str__(self) -> str:
        return f"up to {size(self.kept)}, {size(self.peak)} while it runs"


def disk_of(recipe: Recipe, sets: Sets) -> Disk:
    """Disk space that `flatgd run` takes, without studies."""
    backbone = on_meta(load_config(recipe.backbone))
    expert = on_meta(load_config(recipe.expert_backbone)) if recipe.expert_backbone else backbone
    kept = checkpoints = states = 0.0
    seen = []
    for name in (*EXPERTS, *recipe.methods):
        kind = Clean if name in EXPERTS else METHODS[recipe.kind_of(name)]
        overrides = recipe.overrides(name)
        model = expert if name in EXPERTS else backbone
        of_own = name if name == "toxic_expert" else recipe.methods.get(name)
        if (same := (model, kind, overrides, of_own or None)) in seen:  # clean expert and clean
            continue
        seen.append(same)
        if not issubclass(kind, Method):
            kept += weight_bytes(model)
            continue
        config = training_config(recipe, overrides, recipe.output, kind)
        lora = config.lora_rank
        trained = adapter_bytes(model, lora, config.lora_targets) if lora else weight_bytes(model)
        kept += (1 + config.snapshots) * trained
        if config.save_strategy != "no":
            stay = (config.save_total_limit or CHECKPOINTS_KEPT) + 1
            checkpoints = max(checkpoints, stay * 3 * trained)
        if config.expert_cache and kind.needs:
            width = expert.get_output_embeddings().weight.shape[1]
            states = 2.0 * len(sets.policy) * recipe.max_reply_tokens * width * 4
    judges = [*recipe.judges, recipe.sample.judge]
    trained_judges = [load_config(str(j.model)) for j in judges if j.kind == "trained"]
    kept += sum(weight_bytes(on_meta(config, AutoModel)) for config in trained_judges)
    replies = len(histories_to_answer(recipe, sets)) * recipe.generate.samples + len(sets.test)
    kept += len(recipe.models) * (replies * REPLY_BYTES + OTHER_BYTES)
    kept = recipe.seeds * (kept + states)
    return Disk(kept, kept + checkpoints)


def free_space(folder: Path) -> str:
    """Free disk space where `folder` is or will be."""
    return size(free_bytes(folder))
