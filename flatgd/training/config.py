"""FlatGDConfig: TrainingArguments with the paper's fields. What cannot work is refused by name."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from flatgd.config.options import option
from flatgd.errors import UnsupportedError
from flatgd.flatness import PenaltySettings
from flatgd.methods.base import LM_WEIGHT
from flatgd.methods.safety_loss import ATTRACT_WEIGHT, PENALISE, REPEL_WEIGHT
from flatgd.training.setting_faults import CHECKPOINTING, setting_faults
from flatgd.training.trainer_components import part_faults


@dataclass
class FlatGDConfig(TrainingArguments):
    """TrainingArguments and the fields below, each described in docs/options.md. Defaults are the
    paper's (Table 5) where it has any.

    Raises UnsupportedError, with a way out, for values out of range and for combinations that
    cannot work.
    """

    lm_weight: float = field(default=1.0, metadata=LM_WEIGHT)
    attract_weight: float = field(default=3.0, metadata=ATTRACT_WEIGHT)
    repel_weight: float = field(default=2.0, metadata=REPEL_WEIGHT)
    flatness_weight: float | None = field(
        default=None,
        metadata=option(
            "Fixed weight lambda of the penalty (Eq. 1). 0 turns the penalty off. Set this or "
            "penalty_share, not both.",
            ge=0,
        ),
    )
    penalty_share: float | None = field(
        default=None,
        metadata=option(
            "Norm of the penalty's gradient relative to the rest of the gradient. Lambda is chosen "
            "for it; with lookahead, the point at which the whole gradient has changed by this "
            "share. 0 turns the penalty off. 0.3 if flatness_weight is not set either.",
            ge=0,
            unit="of the rest's norm",
        ),
    )
    penalty_squared: bool = field(
        default=True,
        metadata=option("Penalises ||grad||^2, as in Eq. 1. false penalises ||grad||."),
    )
    penalise: Literal["safety_loss", "objective"] = field(default="safety_loss", metadata=PENALISE)
    penalty_warmup: float = field(
        default=0.1,
        metadata=option(
            "Fraction of the steps, from the first, without the penalty (Zhao et al. 2024).",
            ge=0,
            le=1,
            unit="of the steps",
        ),
    )
    flatness_method: Literal["auto", "finite_difference", "fast", "lookahead", "exact"] = field(
        default="auto",
        metadata=option(
            "How the penalty's gradient is computed. auto is finite_difference in float32, and "
            "exact where passes round to bfloat16 and the model allows it. fast saves a backward "
            "pass: it takes the rest of the gradient at the second pass's point, off by O(rho), "
            "and measures lambda at every tenth step. lookahead takes one pass, at a point ahead "
            "of the weights to which a running mean of past gradients leads. exact uses second "
            "derivatives and takes more memory."
        ),
    )
    penalty_layers: Any = field(
        default="all",
        metadata=option(
            "The weights that the penalty covers. blocks leaves out embeddings and output head; a "
            "number means that many of the decoder's top blocks, which is faster. Needs "
            "flatness_method: finite_difference.",
            values="all, blocks, or a number of blocks",
        ),
    )
    penalty_every: int | None = field(
        default=None,
        metadata=option(
            "Computes the penalty at every n-th step; the steps between use it again. With "
            "lookahead, refreshes its running mean at every n-th step. Higher is faster. Without "
            "it, 1; with lookahead, 16.",
            ge=1,
            unit="steps",
        ),
    )
    penalty_fraction: float = field(
        default=1.0,
        metadata=option(
            "Fraction of each batch's rows used to estimate the penalty. Lower is faster and "
            "noisier.",
            gt=0,
            le=1,
            unit="of the rows",
        ),
    )
    penalty_momentum: float | None = field(
        default=None,
        metadata=option(
            "Weight of the past in a running mean of the gradient whose norm is penalised. Higher "
            "makes a small penalty_fraction less noisy. Needs flatness_method: finite_difference "
            "or lookahead. Without it, 0; with lookahead, 0.5.",
            ge=0,
            lt=1,
        ),
    )
    fused_head: bool = field(
        default=True,
        metadata=option(
            "Computes output head and divergences in chunks, which saves memory. The result is the "
            "same up to rounding."
        ),
    )
    difference: Literal["forward", "central"] = field(
        default="forward",
        metadata=option(
            "Kind of finite difference. central takes one more pass; its error is O(rho^2) instead "
            "of O(rho)."
        ),
    )
    rho: float | None = field(
        default=None,
        metadata=option(
            "Length of the second pass's step in weight space. Without it, the first penalised "
            "step tries several, and the longest with a small estimated error is kept.",
            gt=0,
        ),
    )
    micro_batch_size: int | None = field(
        default=None,
        metadata=option(
            "Rows in memory at once. The batch is split inside the step, which does not change the "
            "result. Without it, the whole batch.",
            ge=1,
            unit="rows",
        ),
    )
    expert_cache: str | None = field(
        default=None,
        metadata=option(
            "Folder that keeps the experts' last hidden states between trainings. Faster, and "
            "takes disk space. In a recipe, auto (the default) keeps them where that is cheaper "
            "than running the experts in every step, and none never does."
        ),
    )
    lora_rank: int = field(
        default=0,
        metadata=option(
            "Rank of a LoRA adapter, which is then all that is trained. 0 trains all weights.", ge=0
        ),
    )
    lora_alpha: int | None = field(
        default=None,
        metadata=option("LoRA's scale times its rank. Without it, twice the rank.", ge=1),
    )
    lora_targets: Any = field(
        default="all-linear",
        metadata=option("The layers that get an adapter.", values="a list of names, or all-linear"),
    )
    snapshots: int = field(
        default=0,
        metadata=option(
            "How many times the weights are kept, at evenly spaced steps, for `flatgd flatness`.",
            ge=0,
            unit="checkpoints",
        ),
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata=option(
            "Ends the training after this many evaluations in a row without a new best. Without "
            "it, the training never ends early.",
            ge=1,
            unit="evaluations",
        ),
    )
    max_history_tokens: int = field(
        default=128,
        metadata=option("Newest tokens of the history that are kept.", ge=1, unit="tokens"),
    )
    max_reply_tokens: int = field(
        default=64, metadata=option("Tokens of the reply that are kept.", ge=1, unit="tokens")
    )
    turn_separator: str | None = field(
        default=None,
        metadata=option("Text between turns. Without it, the chat template or the family's own."),
    )
    template_date: str = field(
        default="2025-01-01",
        metadata=option("Date that a chat template prints as today's.", values="YYYY-MM-DD"),
    )
    chat_template_kwargs: dict[str, Any] = field(
        default_factory=lambda: {"enable_thinking": False},
        metadata=option("Variables of the chat template."),
    )

    learning_rate: float = field(
        default=5e-6,
        metadata=option(
            "Step size of the optimizer. The default is Table 5's, for 400M parameters; smaller "
            "models need more.",
            ge=0,
        ),
    )
    per_device_train_batch_size: int = field(
        default=64,
        metadata=option(
            "The whole batch, over which the gradient's norm is taken. Table 5: 64.",
            ge=1,
            unit="rows",
        ),
    )
    num_train_epochs: float = field(
        default=2.0,
        metadata=option(
            "Passes over the training rows. Not used with max_steps. Table 5: 2.",
            gt=0,
            unit="epochs",
        ),
    )
    max_steps: int = field(
        default=-1,
        metadata=option(
            "Optimizer steps, instead of num_train_epochs. -1 means not set.",
            ge=1,
            unit="steps",
            unset=-1,
        ),
    )
    warmup_steps: float = field(
        default=0,
        metadata=option(
            "Steps over which the learning rate rises from 0. Below 1, a fraction of all steps.",
            ge=0,
            unit="steps",
        ),
    )
    weight_decay: float = field(
        default=0.0,
        metadata=option(
            "AdamW's weight decay. 0, because the penalty is on the loss and not the weights.", ge=0
        ),
    )
    logging_steps: float = field(
        default=1,
        metadata=option(
            "Steps from one log line to the next. Below 1, a fraction of all steps.",
            ge=0,
            unit="steps",
        ),
    )
    save_strategy: str = field(
        default="no",
        metadata=option(
            "When checkpoints are saved. With steps or epoch, an interrupted training resumes "
            "inside itself.",
            values="no, steps, epoch, best",
        ),
    )
    save_steps: float = field(
        default=500,
        metadata=option(
            "Steps from one checkpoint to the next, with save_strategy: steps. Below 1, a fraction "
            "of all steps.",
            gt=0,
            unit="steps",
        ),
    )
    save_total_limit: int | None = field(
        default=None,
        metadata=option(
            "Checkpoints kept on disk; older ones are deleted. Without it, two.",
            ge=1,
            unit="checkpoints",
        ),
    )
    report_to: Any = field(
        default="none",
        metadata=option(
            "Trackers that receive the training's figures. In a recipe, one that uses the network "
            "needs `flatgd --allow send`.",
            values="none, tensorboard, wandb, ...",
        ),
    )
    remove_unused_columns: bool = field(
        default=False,
        metadata=option("Not used: batches are made from dialogues, not from columns."),
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata=option("Whether early stopping resumes its count after an interruption."),
    )
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata=option("Whether NaN is left out of the logged loss. Never by default."),
    )

    def __post_init__(self) -> None:
        if faults := [*setting_faults(self), *part_faults(self)]:
            raise UnsupportedError("\n".join(faults))
        is_ahead = self.flatness_method == "lookahead"
        if self.penalty_every is None:
            self.penalty_every = 16 if is_ahead else 1
        if self.penalty_momentum is None:
            self.penalty_momentum = 0.5 if is_ahead else 0.0
        if self.early_stopping_patience and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        self.dataloader_pin_memory &= torch.cuda.is_available()  # else torch warns at every start
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # otherwise Trainer refuses bf16 there
        if self.torch_compile:
            # Compile the blocks only: the stand-in for the head cannot be compiled. Keep buffers,
            # because one graph is run backward twice.
            os.environ["ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION"] = "true"
            torch._functorch.config.donated_buffer = False
        super().__post_init__()
        if self.n_gpu > 1:
            raise UnsupportedError(
                f"one process sees {self.n_gpu} GPUs, and DataParallel has no whole-batch "
                "gradient; set CUDA_VISIBLE_DEVICES to one, or start with accelerate launch"
            )

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
            weight=self.flatness_weight,
            share=share,
            squared=self.penalty_squared,
            difference=self.difference,
            rho=self.rho or (1e-2 if self.bf16 or in_half else 3e-4),
        )
