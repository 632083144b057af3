"""How much memory a training takes, from configurations alone.

Memory in each process; sizes in bytes. The number of weights gives weights, gradients and
optimizer. Activations are measured: the model is built without weights on torch's meta device, one
micro-batch of the longest rows runs through it, and the estimate adds up what autograd would keep.

    weights      the policy's, and those of both experts or of their heads
    gradients    copies of the trainable weights. plain: 1. finite_difference: 4 in the second pass
                 (safety gradient, rest, sum, original weights). fast: 3. exact: 4.
                 lookahead: 4 where it measures its distance (safety gradient, the
                 whole here and ahead, original weights)
    optimizer    AdamW's two moments
    activations  of one micro-batch; about four times as much for exact, with its second graph
    buffers      the fused head's chunk, or the logits
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from flatgd.losses.fused import tokens_at_once
from flatgd.methods import Method
from flatgd.methods.safety_loss import MAX_CACHED_BYTES
from flatgd.models.loading import on_meta
from flatgd.training.config import CHECKPOINTING
from flatgd.training.penalty_choice import chosen_way

FLOAT = 4
COPIES = {"plain": 1, "finite_difference": 4, "fast": 3, "lookahead": 4, "exact": 4}


@dataclass(frozen=True)
class Memory:
    """Memory of a stage in each process, in bytes."""

    weights: float
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    buffers: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers

    def __str__(self) -> str:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = ", ".join(f"{name} {size(taken)}" for name, taken in named.items() if taken)
        return f"{size(self.total)} ({parts})"


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
    kept_copies: int = 0,
    base_bytes: int = FLOAT,
    expert_bytes: int = FLOAT,
    expert_rank: int = 0,
    batch_rows: int | None = None,
) -> Memory:
    """Memory of a training of a model with transformers' `config` in micro-batches of `rows` rows.

    `method`: how the penalty is computed, or plain. `experts`: full, of `expert_config` if they are
    of another size; adapters of `expert_rank` (on the policy's own base), apart (on a base of their
    own), cached (states on disk), none. `batch_rows`: of the whole batch. `half`: bf16 autocast.
    `kept_copies` of the trained weights' size stay in the optimizer's state beside Adam's two: a
    running mean, a penalty that is used again. `base_bytes`: of each frozen
    weight under an adapter, `expert_bytes`: of each of a full expert's. Under fsdp2 weights,
    gradients and optimizer are shared out over the processes, the experts are not.
    """
    model = on_meta(config)
    base = weight_bytes(model)
    adapter = adapter_bytes(model, lora_rank, lora_targets) if lora_rank else 0
    trained = adapter or base
    if adapter:
        base = base * base_bytes // FLOAT
    head = model.get_output_embeddings().weight
    expert = on_meta(expert_config) if expert_config else model
    of_adapter = adapter_bytes(expert, expert_rank or lora_rank, lora_targets)
    of_experts = {
        "full": 2 * weight_bytes(expert, expert_bytes),
        "adapters": 2 * of_adapter,
        "apart": weight_bytes(expert, expert_bytes) + 2 * of_adapter,
        "cached": 2 * expert.get_output_embeddings().weight.numel() * FLOAT,
        "none": 0,
    }[experts]
    shards = processes if strategy == "fsdp2" else 1
    kept, tokens = _activations(model, rows, history_tokens, reply_tokens, half, checkpointing)
    in_chunk = min(tokens, tokens_at_once(head)) if fused and method != "exact" else tokens
    # of [tokens, vocabulary] in float32; exact differentiates each twice
    buffers = 20 if method == "exact" else 8 if fused else 10
    said = 2 * FLOAT * (batch_rows or rows) * reply_tokens * head.shape[0]  # by both experts
    kept_said = said if experts != "none" and said <= MAX_CACHED_BYTES else 0
    return Memory(
        weights=(base + adapter) / shards + of_experts,
        gradients=COPIES[method] * trained / shards,
        optimizer=(2 + kept_copies) * trained / shards,
        activations=kept * (4 if method == "exact" else 1),
        buffers=buffers * in_chunk * head.shape[0] * FLOAT + kept_said,
    )


def of_method(
    settings: Any,
    kind: type[Method],
    config: Any,
    expert_config: Any,
    processes: int = 1,
    strategy: str = "ddp",
    rows: int | None = None,
    base: torch.dtype = torch.float32,
    expert: torch.dtype = torch.float32,
    expert_rank: int = 0,
    lengths: tuple[int, int] | None = None,
) -> Memory:
    """Memory of a training with a FlatGDConfig, in micro-batches of `rows`.

    Experts are full models, or adapters of `expert_rank`, on the policy's base if the policy is an
    adapter too. `base` and `expert` are the precisions of the base under an adapter and of full
    experts. `lengths` are the longest history and reply, if they are known.
    """
    flat = kind.is_flat and settings.penalty_settings() is not None
    in_half = settings.bf16 or (base != torch.float32 and settings.lora_rank > 0)
    way = chosen_way(settings, in_half, on_meta(config), strategy == "fsdp2")
    is_ahead, reuses = way == "lookahead", settings.penalty_every > 1
    experts = "none"
    if kind.needs:
        shared = settings.lora_rank and expert_config is None
        experts = "full" if not expert_rank else "adapters" if shared else "apart"
        experts = "cached" if settings.expert_cache else experts
    history, reply = lengths or (settings.max_history_tokens, settings.max_reply_tokens)
    return estimate(
        config,
        rows or settings.micro_batch_size or settings.per_device_train_batch_size,
        history,
        reply,
        method=way if flat else "plain",
        processes=processes,
        strategy=strategy,
        lora_rank=settings.lora_rank,
        lora_targets=settings.lora_targets,
        experts=experts,
        expert_config=expert_config,
        fused=settings.fused_head and bool(kind.needs),
        half=in_half,
        checkpointing=settings.is_checkpointed,
        kept_copies=flat * (is_ahead or bool(settings.penalty_momentum) + reuses),
        base_bytes=base.itemsize,
        expert_bytes=expert.itemsize,
        expert_rank=expert_rank,
        batch_rows=settings.per_device_train_batch_size,
    )


def size(count: float) -> str:
    """Bytes as text, in MB or GB."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def weight_bytes(model: nn.Module, each: int = FLOAT) -> int:
    """All weights, of `each` bytes; float32 by default."""
    return sum(p.numel() for p in model.parameters()) * each


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
