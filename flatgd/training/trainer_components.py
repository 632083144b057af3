"""What Trainer builds by name: optimizer, schedule, trackers.

Each is built once as a dry run, so that missing packages and settings are reported before weights
are loaded.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.training_args import OptimizerNames

from flatgd.models.loading import summarize_error

STEPS_IN_BACKWARD = ("lomo", "layerwise")  # optimizers that leave no gradient to work with


def part_faults(args: Any) -> Iterator[str]:
    """What cannot be built of a FlatGDConfig's optimizer, schedule and trackers."""
    yield from _optimizer_faults(args)
    yield from _schedule_faults(args)
    given = args.report_to if isinstance(args.report_to, list) else [args.report_to]
    for name in given:
        if name in (None, "none", "all"):
            continue
        try:
            for kind in get_reporting_integration_callbacks([name]):
                # some end a run when they are deleted, which those that never began cannot
                type(kind.__name__, (kind,), {"__del__": lambda self: None})()
        except Exception as error:  # each tracker raises its own
            yield f"report_to: {name} cannot be used: {summarize_error(error)}"


def sampling_faults(args: Any) -> Iterator[str]:
    """What FlatGDTrainer's own rows cannot do."""
    strategy = str(getattr(args.train_sampling_strategy, "value", args.train_sampling_strategy))
    if strategy not in ("random", "sequential"):
        yield (
            f"train_sampling_strategy: {strategy} needs a column that rows of replies do not have; "
            "leave it at random (micro-batches are sorted by length inside each batch)"
        )


def _optimizer_faults(args: Any) -> Iterator[str]:
    name = str(getattr(args.optim, "value", args.optim))
    if any(word in name for word in STEPS_IN_BACKWARD):
        yield (
            f"optim: {name} changes weights inside the backward pass, of which the penalty needs "
            "two; use another"
        )
        return
    try:
        settings = copy.copy(args)
        settings.optim = OptimizerNames(name)
        kind, options = Trainer.get_optimizer_cls_and_kwargs(settings)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            kind([torch.nn.Parameter(torch.zeros(1, 1))], **options)
    except Exception as error:  # each package raises its own
        if "pass a model" not in str(error):  # those that need one are installed
            yield f"optim: {name} cannot be used: {summarize_error(error)}"


def _schedule_faults(args: Any) -> Iterator[str]:
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    if name in ("reduce_lr_on_plateau", "greedy") and args.eval_strategy == "no":
        yield f"lr_scheduler_type: {name} needs evaluations; set eval_strategy"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    options = args.lr_scheduler_kwargs
    try:
        get_scheduler(
            name,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(10),
            num_training_steps=10,
            scheduler_specific_kwargs=dict(options) if isinstance(options, dict) else None,
        )
    except Exception as error:  # whatever a schedule makes of its options
        reason = summarize_error(error)
        yield f"lr_scheduler_type: {name} cannot be used: {reason}; see lr_scheduler_kwargs"
