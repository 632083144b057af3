"""How much memory a training takes in each process, from configurations alone.

Weights, gradients and optimizer follow from the number of weights. Activations are counted: the
model is built without weights on torch's meta device, one micro-batch of the longest rows goes
through it, and what autograd would keep is added up. Sizes in bytes; float32 weights.

    weights      the policy's, and those of both experts or of their heads
    gradients    plain 1 copy of the trainable weights; finite differences 4 in the second pass (the
                 safety gradient, the rest, the sum in the making, the weights to be restored);
                 fast 3; exact 4
    optimizer    AdamW's two moments
    activations  of one micro-batch; about three times for exact, with its second graph
    head         the fused head's chunk, or the logits
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from flatgd.errors import ModelError
from flatgd.losses.fused import tokens_at_once
from flatgd.methods import Method
from flatgd.training.config import CHECKPOINTING

FLOAT = 4
COPIES = {"plain": 1, "finite_difference": 4, "fast": 3, "exact": 4}
STRATEGIES = ("ddp", "fsdp2")


@dataclass(frozen=True)
class Memory:
    """Bytes in each process."""

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
    """Memory of a training as a FlatGDConfig has it. Experts are full models, or, where the policy
    is an adapter, taken for adapters on its base."""
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
    """Bytes in words."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"


def on_meta(config: Any, kind: Any = None) -> Any:
    """A model of that configuration, without weights; ModelError if transformers has none."""
    kind = kind or (AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM)
    with torch.device("meta"):
        try:
            return kind.from_config(config, dtype=torch.float32)
        except ValueError:
            raise ModelError(f"transformers has no {config.model_type!r} that fits here") from None


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
            alive.append(tensor)  # else its number would be given to another
        return tensor

    alive: list[Tensor] = []
    ids = torch.zeros(rows, history, dtype=torch.long, device="meta")
    said = torch.zeros(rows, reply, dtype=torch.long, device="meta")
    decoded = reply if model.config.is_encoder_decoder else history + reply
    seen = torch.ones(rows, 1, decoded, decoded, device="meta")  # a mask that nobody looks into
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": ids, "decoder_input_ids": said, "decoder_attention_mask": seen}
    else:
        inputs = {"input_ids": torch.cat([ids, said], 1), "attention_mask": seen}
    precision = torch.autocast("cpu", torch.bfloat16, enabled=half)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        model.base_model(**inputs, use_cache=False)
    return sum(kept.values()), rows * reply
