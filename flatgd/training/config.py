"""FlatGDConfig: TrainingArguments with the paper's fields, and what cannot work refused by name."""

import os
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from flatgd.errors import UnsupportedError
from flatgd.flatness import PenaltySettings
from flatgd.io.records import is_number
from flatgd.training.parts import part_faults


def _doc(text: str) -> dict[str, str]:
    return {"help": text}


CHECKPOINTING = next(  # transformers 5.23 renames this option
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {option.name for option in fields(TrainingArguments)}
)


@dataclass
class FlatGDConfig(TrainingArguments):
    """TrainingArguments and the fields below. Defaults are the paper's (Table 5) where it has any.

    Raises UnsupportedError, with the mend, for combinations that cannot work.
    """

    lm_weight: float = field(default=1.0, metadata=_doc("a of Eq. 1; Table 5: 1"))
    attract_weight: float = field(default=3.0, metadata=_doc("gamma of Eq. 4; Table 5: 3"))
    repel_weight: float = field(default=2.0, metadata=_doc("beta of Eq. 4; Table 5: 2"))
    flatness_weight: float | None = field(
        default=None, metadata=_doc("lambda of Eq. 1, fixed; 0 turns the penalty off")
    )
    penalty_share: float | None = field(
        default=None,
        metadata=_doc(
            "instead of flatness_weight: lambda such that the penalty's gradient has this norm "
            "relative to the rest of the gradient, step by step; 0.3 if neither is given"
        ),
    )
    penalty_squared: bool = field(
        default=True, metadata=_doc("||grad||^2 as in Eq. 1, or ||grad|| as in the paper's words")
    )
    penalise: Literal["safety_loss", "objective"] = field(
        default="safety_loss", metadata=_doc("whose gradient norm is penalised")
    )
    penalty_warmup: float = field(
        default=0.1,
        metadata=_doc("the penalty is off for this share of the steps (Zhao et al. 2024)"),
    )
    flatness_method: Literal["finite_difference", "fast", "exact"] = field(
        default="finite_difference",
        metadata=_doc(
            "how the penalty's gradient is computed; fast: the rest of the gradient is taken at "
            "the second pass's point, off by O(rho), and lambda is measured at each tenth step"
        ),
    )
    penalty_every: int = field(
        default=1,
        metadata=_doc("the penalty comes at each so many steps only, so many times as strong"),
    )
    penalty_fraction: float = field(
        default=1.0,
        metadata=_doc("share of the batch's rows whose gradient norm is penalised, 0..1"),
    )
    penalty_momentum: float = field(
        default=0.0,
        metadata=_doc(
            "the gradient whose norm is penalised is a running mean over steps, of this weight on "
            "the past, 0..1; with it a penalty_fraction keeps more of the effect"
        ),
    )
    fused_head: bool = field(
        default=True,
        metadata=_doc("head and divergences in chunks, never [tokens, vocabulary] at once"),
    )
    difference: Literal["forward", "central"] = field(
        default="forward", metadata=_doc("central: one more pass, error O(rho^2) instead of O(rho)")
    )
    rho: float | None = field(
        default=None,
        metadata=_doc(
            "length of the second pass's step in weight space; by default 3e-4 in float32, 1e-2 "
            "under bf16 or on a frozen base in half precision"
        ),
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata=_doc("rows in memory at once; the batch is split inside the step, exactly"),
    )
    expert_cache: str | None = field(
        default=None,
        metadata=_doc("folder that keeps the experts' last hidden states between trainings"),
    )
    lora_rank: int = field(
        default=0,
        metadata=_doc("train a LoRA adapter of this rank and nothing else; 0: all weights"),
    )
    lora_alpha: int | None = field(
        default=None, metadata=_doc("LoRA's scale times its rank; by default twice the rank")
    )
    lora_targets: Any = field(
        default="all-linear", metadata=_doc("the layers it sits on: names, or all linear ones")
    )
    snapshots: int = field(
        default=0,
        metadata=_doc("weights kept at so many evenly spaced steps, for `flatgd flatness`"),
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata=_doc(
            "the training ends after so many evaluations in a row that are no better than the best"
        ),
    )
    max_history_tokens: int = field(default=128, metadata=_doc("newest tokens of the history kept"))
    max_reply_tokens: int = field(default=64, metadata=_doc("tokens of the reply kept"))
    turn_separator: str | None = field(
        default=None,
        metadata=_doc("between turns, instead of the family's own and of a chat template"),
    )
    template_date: str = field(
        default="2025-01-01",
        metadata=_doc("the day that a chat template prints as today's, YYYY-MM-DD"),
    )
    chat_template_kwargs: dict[str, Any] = field(
        default_factory=lambda: {"enable_thinking": False},
        metadata=_doc("variables of the chat template"),
    )

    learning_rate: float = field(default=5e-6, metadata=_doc("Table 5: 5e-6, for 400M parameters"))
    per_device_train_batch_size: int = field(default=64, metadata=_doc("Table 5: 64"))
    num_train_epochs: float = field(default=2.0, metadata=_doc("Table 5: 2"))
    weight_decay: float = field(default=0.0, metadata=_doc("none, as the penalty is on the loss"))
    logging_steps: float = field(default=1, metadata=_doc("each step is logged"))
    save_strategy: str = field(default="no", metadata=_doc("'steps' to resume inside a training"))
    report_to: Any = field(default="none", metadata=_doc("trackers, off unless asked for"))
    remove_unused_columns: bool = field(default=False, metadata=_doc("our batches are our own"))
    restore_callback_states_from_checkpoint: bool = field(
        default=True, metadata=_doc("so that early stopping goes on counting where it was")
    )
    logging_nan_inf_filter: bool = field(default=False, metadata=_doc("NaN is never hidden"))

    def __post_init__(self) -> None:
        if faults := [*self._faults(), *part_faults(self)]:
            raise UnsupportedError("\n".join(faults))
        if self.early_stopping_patience and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        self.dataloader_pin_memory &= torch.cuda.is_available()  # else torch warns at every start
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # Trainer refuses bf16 there unless told so
        if self.torch_compile:
            # blocks alone: what stands in for the head is not compiled; and a graph is gone through
            # backward twice
            os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"
            torch._functorch.config.donated_buffer = False
        super().__post_init__()
        if self.n_gpu > 1:
            raise UnsupportedError(
                f"one process sees {self.n_gpu} GPUs, and DataParallel has no whole-batch "
                "gradient; set CUDA_VISIBLE_DEVICES to one, or start with accelerate launch"
            )

    def _faults(self) -> Any:
        if self.flatness_weight is not None and self.penalty_share is not None:
            yield (
                f"flatness_weight={self.flatness_weight} and penalty_share={self.penalty_share} "
                "both set lambda; give one"
            )
        for name in ("lm_weight", "attract_weight", "repel_weight"):
            if not is_number(getattr(self, name)):
                yield f"{name} must be a number, got {getattr(self, name)!r}"
        for name in ("flatness_weight", "penalty_share", "rho"):
            value = getattr(self, name)
            if value is not None and (value < 0 or (name == "rho" and value == 0)):
                yield f"{name} must be positive, got {value}"
        if not 0 <= self.penalty_warmup <= 1:
            yield f"penalty_warmup is a share of the steps, 0..1, got {self.penalty_warmup}"
        if not 0 < self.penalty_fraction <= 1:
            yield f"penalty_fraction is a share of the rows, 0..1, got {self.penalty_fraction}"
        if not 0 <= self.penalty_momentum < 1:
            yield f"penalty_momentum is a weight, 0..1 without 1, got {self.penalty_momentum}"
        if self.penalty_momentum and self.flatness_method != "finite_difference":
            yield "penalty_momentum needs flatness_method: finite_difference"
        if self.penalty_every < 1:
            yield f"penalty_every must be at least 1, got {self.penalty_every}"
        if self.flatness_method == "fast" and self.difference == "central":
            yield "flatness_method: fast is a forward difference; leave difference at 'forward'"
        if self.lora_rank < 0:
            yield f"lora_rank must not be negative, got {self.lora_rank}"
        if self.snapshots < 0:
            yield f"snapshots must not be negative, got {self.snapshots}"
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            yield f"micro_batch_size must be at least 1, got {self.micro_batch_size}"
        for name, choices in (
            ("flatness_method", ("finite_difference", "fast", "exact")),
            ("difference", ("forward", "central")),
            ("penalise", ("safety_loss", "objective")),
        ):
            if getattr(self, name) not in choices:
                yield f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
        if not isinstance(self.learning_rate, int | float):
            yield f"learning_rate must be a number, got {self.learning_rate!r}"
        if self.per_device_train_batch_size < 1:
            yield "per_device_train_batch_size must be at least 1: it is the whole batch"
        if self.bf16_full_eval or self.fp16_full_eval:
            yield (
                "bf16_full_eval and fp16_full_eval round the trained weights for good; leave them "
                "out (bf16: true evaluates in bfloat16 too)"
            )
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            yield f"early_stopping_patience must be at least 1, got {self.early_stopping_patience}"
        if self.fp16:
            yield "fp16 scales the gradient that the penalty measures; use bf16 or float32"
        if self.label_smoothing_factor:
            yield "label smoothing changes another loss than ours; set label_smoothing_factor to 0"
        if self.deepspeed:
            yield "DeepSpeed hides the gradients of the two passes; use DDP or FSDP2"
        if self.gradient_accumulation_steps != 1:
            yield (
                "the penalty is of the whole batch, so gradient_accumulation_steps must be 1; set "
                "per_device_train_batch_size to the whole batch and micro_batch_size to what fits"
            )
        if self.auto_find_batch_size:
            yield "auto_find_batch_size changes the objective; set micro_batch_size instead"
        if self.flatness_method == "exact":
            yield from self._faults_of_exact()

    def _faults_of_exact(self) -> Any:
        mend = "use flatness_method: finite_difference"
        if self.torch_compile:
            yield f"torch.compile has no second derivative; {mend}"
        if self.fsdp or self.fsdp_config:
            yield f"FSDP has no second derivative; {mend}"
        kwargs = self.gradient_checkpointing_kwargs or getattr(self, f"{CHECKPOINTING}_kwargs")
        if self.is_checkpointed and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            yield f"reentrant checkpointing cannot; set use_reentrant: false, or {mend}"

    @property
    def is_checkpointed(self) -> bool:
        """Whether activations are computed again in the backward pass; by either name."""
        return bool(self.gradient_checkpointing or getattr(self, CHECKPOINTING))

    def penalty_settings(self, in_half: bool = False) -> PenaltySettings | None:
        """How the penalty is computed, None where it is off. `in_half`: whether a forward pass
        rounds to half precision, also where `bf16` is not set."""
        share = self.penalty_share
        if self.flatness_weight is None and share is None:
            share = 0.3
        if 0 in (self.flatness_weight, share):
            return None
        return PenaltySettings(
            weight=self.flatness_weight and self.flatness_weight * self.penalty_every,
            share=share and share * self.penalty_every,
            squared=self.penalty_squared,
            difference=self.difference,
            rho=self.rho or (1e-2 if self.bf16 or in_half else 3e-4),
        )
