"""Evaluation: a method's loss over held-out rows.

The figures are those of training, with the same denominators: sums over the tokens (rows, pairs) of
the whole evaluation set, divided by their number in the whole set. They depend neither on the batch
size nor on the number of processes. `eval_loss` is J without its penalty, and dropout is off.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from flatgd.errors import UnsupportedError
from flatgd.methods.base import Totals
from flatgd.models.dialogue_format import Batch
from flatgd.models.heads import FORWARD_KEYS, reshard
from flatgd.training.micro_batches import without_repeats
from flatgd.training.totals import counts_of

logger = logging.getLogger(__name__)


class _EvaluationState:
    """One evaluation: the number of its items, their totals, and the figures so far."""

    def __init__(self, items: int, totals: Totals):
        self.items, self.totals = items, totals
        self.figures: list[dict[str, Tensor]] = []


class Evaluation:
    """List it before FlatnessMixin: Trainer's `evaluate` and `predict` on encoded rows."""

    args: Any
    accelerator: Any
    state: Any
    eval_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any):
        self._evaluation = _EvaluationState(0, Totals(1.0, 0.0))
        super().__init__(*args, **kwargs)

    def encode_rows(self, rows: Any, place: str) -> Sequence[Any]:
        """Evaluation rows in the trainer's encoding; errors call them `place`."""
        raise NotImplementedError

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's method for rows in the form of `train_dataset`. No batch is dropped."""
        is_ours = eval_dataset is None or isinstance(eval_dataset, str)
        if not is_ours and eval_dataset is not self.eval_dataset:
            eval_dataset = self.encode_rows(eval_dataset, "eval_dataset")
        with _every_row(self.args):
            return super().get_eval_dataloader(eval_dataset)  # type: ignore[misc]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Trainer's method for rows in the form of `train_dataset`. No batch is dropped."""
        with _every_row(self.args):
            rows = self.encode_rows(test_dataset, "test_dataset")
            return super().get_test_dataloader(rows)  # type: ignore[misc]

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Trainer's loop, with figures over the whole set. The random state stays unchanged."""
        rows = dataloader.dataset
        self._evaluation = _EvaluationState(len(rows), self._totals_of(rows))
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            output = super().evaluation_loop(  # type: ignore[misc]
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        reshard(self.model_wrapped)  # type: ignore[attr-defined]
        figures = self._sum_figures(self._evaluation.figures)  # type: ignore[attr-defined]
        ours = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        output.metrics.update(
            {**ours, **output.metrics, f"{metric_key_prefix}_loss": figures["loss"]}
        )
        if bad := [name for name, value in ours.items() if not math.isfinite(value)]:
            step = self.state.global_step
            logger.warning("evaluation after step %s: %s is not finite", step, ", ".join(bad))
        return output

    def prediction_step(
        self,
        model: nn.Module,
        inputs: Any,
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(share of the set's loss, logits, targets) of a batch."""
        prepared = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        batch = without_repeats(prepared, self._evaluation.items, self.accelerator)
        with torch.no_grad():
            figures = self._within_memory(  # type: ignore[attr-defined]
                lambda: self._figures_of(model, batch), len(batch["is_safe"])
            )
            self._evaluation.figures.append(figures)
            if prediction_loss_only:
                return figures["loss"], None, None
            with self.compute_loss_context_manager():  # type: ignore[attr-defined]
                feed = {key: prepared[key] for key in FORWARD_KEYS if key in prepared}
                logits: Tensor = model(**feed, use_cache=False).logits
        return figures["loss"], logits, prepared["targets"]

    def _figures_of(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The batch's contributions to the set's figures, summed over its micro-batches."""
        totals = self._evaluation.totals
        parts, _ = self._micro_batches(batch, "plain", totals)  # type: ignore[attr-defined]
        figures: dict[int, dict[str, Tensor]] = {}
        objective = self._objective(model, parts, totals, figures)  # type: ignore[attr-defined]
        for index in range(len(parts)):
            objective.terms(index)
        return {
            name: torch.stack([part[name] for part in figures.values()]).sum()
            for name in figures[0]
        }

    def _totals_of(self, groups: Sequence[Any]) -> Totals:
        """The denominators of the whole set, which every process holds in full."""
        size = self.args.eval_batch_size
        counts = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(groups), size):
            batch = self.data_collator(groups[start : start + size])  # type: ignore[attr-defined]
            counts += counts_of(batch).double()
        tokens, *others = counts.tolist()
        return Totals(max(tokens, 1.0), *others)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        try:
            is_best: bool = super()._determine_best_metric(metrics, trial)  # type: ignore[misc]
        except KeyError:
            raise UnsupportedError(
                f"metric_for_best_model {self.args.metric_for_best_model!r} is not among the "
                f"evaluated metrics: {', '.join(sorted(metrics))}"
            ) from None
        return is_best


def evaluation_faults(args: Any, eval_dataset: Any, callbacks: Sequence[Any]) -> Iterator[str]:
    """What the requested evaluations lack, one sentence each."""
    metric = args.metric_for_best_model
    is_stopped_early = any(hasattr(callback, "early_stopping_patience") for callback in callbacks)
    if args.eval_strategy != "no" and not eval_dataset:
        yield (
            f"eval_strategy is {str(args.eval_strategy.value)!r}, but there are no rows to "
            "evaluate; give eval_dataset (in a recipe: data.eval), or set eval_strategy: 'no'"
        )
    if is_stopped_early and (args.eval_strategy == "no" or metric is None):
        yield "early stopping needs eval_strategy and metric_for_best_model, for example 'loss'"
    if isinstance(eval_dataset, dict) and metric is not None and args.eval_strategy != "no":
        names = [f"eval_{name}_" for name in eval_dataset]
        if not f"eval_{metric.removeprefix('eval_')}".startswith(tuple(names)):
            yield (
                f"metric_for_best_model {metric!r} belongs to none of the evaluation sets; use "
                f"the metric of one, for example {names[0]}loss"
            )


@contextmanager
def _every_row(args: Any) -> Iterator[None]:
    """Inside the block `dataloader_drop_last` is off: it applies to training batches alone."""
    kept, args.dataloader_drop_last = args.dataloader_drop_last, False
    try:
        yield
    finally:
        args.dataloader_drop_last = kept
