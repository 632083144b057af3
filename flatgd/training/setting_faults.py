"""What a FlatGDConfig refuses: values out of range, and settings that contradict each other."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments
from transformers.training_args import trainer_log_levels

from flatgd.config.options import LARGEST_SEED, Option, option_of, value_fault

CHECKPOINTING = next(  # transformers 5.23 renames this option
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in fields(TrainingArguments)}
)

LARGEST_AHEAD = 0.5  # tried: 0.5 trains, 1 diverges

# Ranges of TrainingArguments' own numbers; transformers checks few of them
INHERITED = {
    **dict.fromkeys(("seed", "data_seed"), Option("", ge=0, le=LARGEST_SEED)),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), Option("", ge=0, lt=1)),
    **dict.fromkeys(("adam_epsilon", "eval_steps", "ddp_bucket_cap_mb"), Option("", gt=0)),
    **dict.fromkeys(
        ("eval_accumulation_steps", "torch_empty_cache_steps", "dataloader_prefetch_factor"),
        Option("", ge=1),
    ),
    **dict.fromkeys(
        ("max_grad_norm", "eval_delay", "neftune_noise_alpha", "dataloader_num_workers"),
        Option("", ge=0),
    ),
    **dict.fromkeys(
        ("log_level", "log_level_replica"), Option("", choices=tuple(trainer_log_levels))
    ),
    **dict.fromkeys(("per_device_eval_batch_size", "ddp_timeout"), Option("", ge=1)),
}


def setting_faults(args: Any) -> Iterator[str]:
    """The values of a FlatGDConfig that are out of range, and combinations that cannot work."""
    for field in fields(args):
        limits = INHERITED.get(field.name) or option_of(field)
        if fault := value_fault(field.name, getattr(args, field.name), field.type, limits):
            yield fault
    yield from _contradictions(args)
    yield from _unsupported(args)
    if args.flatness_method == "exact":
        yield from faults_of_exact(args)


def _contradictions(args: Any) -> Iterator[str]:
    if args.flatness_weight is not None and args.penalty_share is not None:
        yield (
            f"flatness_weight={args.flatness_weight} and penalty_share={args.penalty_share} "
            "both set lambda; give one"
        )
    way = args.flatness_method
    if args.penalty_momentum and way not in ("auto", "finite_difference", "lookahead"):
        yield "penalty_momentum needs flatness_method: finite_difference or lookahead"
    if way == "lookahead" and (args.flatness_weight or args.rho):
        yield (
            "flatness_method: lookahead measures how far ahead penalty_share leads; leave "
            "flatness_weight and rho out"
        )
    if way == "lookahead" and (args.penalty_share or 0.0) > LARGEST_AHEAD:
        yield (
            "flatness_method: lookahead holds to first order, and trainings with a large share "
            f"diverge; set penalty_share to at most {LARGEST_AHEAD}, got {args.penalty_share}"
        )
    if way in ("fast", "lookahead") and args.difference == "central":
        yield f"flatness_method: {way} is a forward difference; leave difference at 'forward'"
    yield from _layer_faults(args.penalty_layers, way)


def _layer_faults(layers: Any, way: str) -> Iterator[str]:
    is_number = isinstance(layers, int) and not isinstance(layers, bool)
    if not (layers in ("all", "blocks") or (is_number and layers >= 1)):
        yield f"penalty_layers is all, blocks, or a number of blocks from 1, got {layers!r}"
    elif layers != "all" and way not in ("auto", "finite_difference"):
        yield f"penalty_layers: {layers} needs flatness_method: finite_difference"


def _unsupported(args: Any) -> Iterator[str]:
    if args.bf16_full_eval or args.fp16_full_eval:
        yield (
            "bf16_full_eval and fp16_full_eval round the trained weights permanently; leave "
            "them out (bf16: true evaluates in bfloat16 too)"
        )
    if args.fp16:
        yield "fp16 scales the gradient that the penalty measures; use bf16 or float32"
    if args.label_smoothing_factor:
        yield "label smoothing does not apply to this loss; set label_smoothing_factor to 0"
    if args.deepspeed:
        yield "DeepSpeed hides the gradients of the two passes; use DDP or FSDP2"
    if args.gradient_accumulation_steps != 1:
        yield (
            "the penalty is of the whole batch, so gradient_accumulation_steps must be 1; set "
            "per_device_train_batch_size to the whole batch and micro_batch_size to what fits"
        )
    if args.auto_find_batch_size:
        yield "auto_find_batch_size changes the objective; set micro_batch_size instead"


def faults_of_exact(args: Any) -> Iterator[str]:
    """Settings under which there is no second derivative."""
    way_out = "use flatness_method: finite_difference"
    if args.torch_compile:
        yield f"torch.compile has no second derivative; {way_out}"
    if args.fsdp or args.fsdp_config:
        yield f"FSDP has no second derivative; {way_out}"
    kwargs = args.gradient_checkpointing_kwargs or getattr(args, f"{CHECKPOINTING}_kwargs")
    if args.is_checkpointed and isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
        yield (
            "reentrant checkpointing has no second derivative; set use_reentrant: false, "
            f"or {way_out}"
        )
