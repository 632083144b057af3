"""The two-pass training step, as a mixin for any transformers.Trainer.

The mixin receives a whole batch and splits it into micro-batches. Each micro-batch runs under its
own random seed in every pass, so both passes see the same dropout masks. The finished gradient is
left in `.grad`; clipping, optimizer, scheduler and logging remain the Trainer's.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from flatgd.errors import MemoryLimitError
from flatgd.flatness import (
    FlatGradient,
    Objective,
    Split,
    Terms,
    TermWeights,
)
from flatgd.methods.base import Method, Totals
from flatgd.models.blocks import covered
from flatgd.models.encoding import IGNORE, Batch
from flatgd.models.heads import unwrapped
from flatgd.training.config import CHECKPOINTING
from flatgd.training.gradient_reduction import largest
from flatgd.training.masks import mixed_seed, same_masks
from flatgd.training.micro_batches import emptied, split_batch, take_rows, without_repeats
from flatgd.training.non_finite import refuse_non_finite_step
from flatgd.training.optimizers import switch
from flatgd.training.own_loss import OwnLoss, stays_whole, with_targets
from flatgd.training.penalty_choice import (
    NO_SECOND_DERIVATIVE,
    STATE_KEY,
    Check,
    lacks_second_derivative,
)
from flatgd.training.penalty_memory import forget
from flatgd.training.penalty_passes import PenaltyPasses
from flatgd.training.precision import raise_to_float32, refuse_fp16
from flatgd.training.step_state import StepState
from flatgd.training.totals import totals_of

T = TypeVar("T")
logger = logging.getLogger(__name__)


class FlatnessMixin(PenaltyPasses):
    """List it before a Trainer whose `args` are a FlatGDConfig:

        class FlatSFT(FlatnessMixin, trl.SFTTrainer): ...

    `method` defines the step's objective. Without one, the objective is the Trainer's own loss.
    """

    def __init__(self, *args: Any, method: Method | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        refuse_fp16(self.accelerator.mixed_precision)
        raise_to_float32(self.model)
        given = method or getattr(self, "method", None)  # a subclass may have set one
        self.method = given or OwnLoss(self.compute_loss)  # type: ignore[attr-defined]
        self.step_state = StepState()
        if self.method.is_flat and self.penalty_settings():  # refuses layers that are not there
            covered(self.model, _trained(self.model), self.args.penalty_layers)

    def call_model_init(self, *args: Any) -> Any:
        """Trainer's method; with `model_init` it builds a new model for each training."""
        model = super().call_model_init(*args)  # type: ignore[misc]
        raise_to_float32(model)
        return model

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Leave grad J of the whole batch in `.grad`; return J without the penalty, detached."""
        begun = time.perf_counter()
        model.train()
        switch(self.optimizer, "train")
        batch = with_targets(unwrapped(model), self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if not self.args.dataloader_drop_last:
            items = len(self.train_dataset)  # type: ignore[attr-defined]
            batch = without_repeats(batch, items, self.accelerator)
        totals = totals_of(batch, self.accelerator)
        parameters = _trained(model)
        if self.optimizer and not self.state.global_step:
            forget(self.optimizer)  # what an earlier training of this Trainer has left
        flat, step = self._within_memory(
            lambda: self._passes(model, parameters, batch, totals), len(batch["is_safe"])
        )
        for parameter, gradient in zip(parameters, flat.gradient, strict=True):
            parameter.grad = gradient
        self.step_state.move_into(self.optimizer)
        loss = step.pop("loss")
        self.step_state.add_figures(flat, step, totals, time.perf_counter() - begun)
        return torch.tensor(loss, device=batch["targets"].device)

    def _passes(
        self, model: nn.Module, parameters: list[Tensor], batch: Batch, totals: Totals
    ) -> tuple[FlatGradient, dict[str, float]]:
        """The step's gradient and figures. Parameters and their `.grad` stay unchanged."""
        settings = self._penalty_now()
        on = covered(model, parameters, self.args.penalty_layers) if settings else None
        way = self._way_now(parameters, on) if settings else "plain"
        parts, split = self._micro_batches(batch, way, totals)
        figures: dict[int, dict[str, Tensor]] = {}
        objective = self._objective(model, parts, totals, figures)
        check: Check | None = None
        if settings and way in ("finite_difference", "fast") and self.method.rho_is_a_difference:
            step_of = parameters, objective, split
            settings, check = self._with_rho(model, step_of, settings, on)
        flat = self._gradient(model, parameters, objective, split, settings, way, on)
        step = self._sum_figures(list(figures.values()))
        if settings and check:
            step |= {"penalty_error": check.error, "rho": abs(settings.rho)}
            more = check.evaluations / split.rescale
            flat = flat._replace(evaluations=flat.evaluations + more)
        found = [(parts[number], of_part) for number, of_part in figures.items()]
        refuse_non_finite_step(self.state.global_step + 1, step, flat, found, self.names_of)
        return flat, step

    def _within_memory(self, compute: Callable[[], T], rows: int) -> T:
        """Run `compute`; on out-of-memory, halve the micro-batch and try again."""
        while True:
            size = min(self.args.micro_batch_size or rows, rows)
            try:
                return compute()
            except RuntimeError as error:
                if self._falls_back(error):
                    continue
                if not should_reduce_batch_size(error):
                    raise
                # one of several processes cannot repeat a step while the others are inside it
                if size == 1 or self.accelerator.num_processes > 1:
                    raise MemoryLimitError(_no_room(self.state.global_step + 1, size)) from None
            self.args.micro_batch_size = half = _half(size)
            logger.warning(
                "step %s: out of memory with %s rows at a time; continuing with %s, which gives "
                "the same result. Next time, set micro_batch_size: %s",
                *(self.state.global_step + 1, size, half, half),
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _falls_back(self, error: RuntimeError) -> bool:
        """Whether `auto` takes finite differences from now on, because an operation of the model
        has no second derivative."""
        is_exact = self.args.flatness_method == "auto" and self.flatness_method == "exact"
        if not is_exact or not lacks_second_derivative(error):
            return False
        self.step_state.has_no_second_derivative, self.step_state.is_fused = True, None
        logger.warning(NO_SECOND_DERIVATIVE, str(error).splitlines()[0])
        return True

    def _micro_batches(self, batch: Batch, way: str, totals: Totals) -> tuple[list[Batch], Split]:
        """The micro-batches, and a Split that says by number which of them are penalised."""
        size, rows = self.args.micro_batch_size, len(batch["is_safe"])
        is_plain = way in ("plain", "reused", "ahead")
        count = rows if is_plain else math.ceil(self.args.penalty_fraction * rows)
        # toxic rows alone skip a backward pass, which does not pay for two very small passes
        apart = not is_plain and way != "fast" and count > (size or rows) // 2
        others: list[Batch] = []
        rescale = 1.0
        if stays_whole(batch, size, count):
            parts = [batch]
        elif count == rows:
            parts = self._in_step(split_batch(batch, size, apart))
        else:
            numbers = torch.arange(rows, device=batch["is_safe"].device)
            parts = self._in_step(split_batch(take_rows(batch, numbers[:count]), size, apart))
            others = self._in_step(split_batch(take_rows(batch, numbers[count:]), size))
            tokens = sum((part["targets"] != IGNORE).sum() for part in parts)
            rescale = totals.tokens / float(self.accelerator.reduce(tokens, "sum"))
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            prepared = self.method.prepare([*parts, *others])
        penalised = 0 if way == "ahead" else len(parts)
        return prepared, Split(range(penalised), range(penalised, len(prepared)), rescale)

    def _in_step(self, parts: list[Batch]) -> list[Batch]:
        """Under FSDP2, pad the list with empty micro-batches: weights are gathered in every pass,
        so all processes must run the same number of passes."""
        if not self.accelerator.is_fsdp2:
            return parts
        one = take_rows(parts[0], torch.arange(1, device=parts[0]["is_safe"].device))
        none = emptied(one, torch.ones_like(one["is_safe"]))
        return parts + [none] * (largest(self.accelerator, len(parts)) - len(parts))

    def _objective(
        self,
        model: nn.Module,
        parts: list[Batch],
        totals: Totals,
        figures: dict[int, dict[str, Tensor]],
    ) -> Objective:
        """The step's objective; its micro-batches are indices into `parts`.

        `figures` receives the figures of each micro-batch's first evaluation, by index.
        """
        is_fused = self._is_fused(model, parts[0])

        def score(index: int, term_weights: TermWeights | None) -> Terms:
            seed = mixed_seed(
                self.args.seed, self.state.global_step, self.args.process_index, index
            )
            masks = same_masks(seed, parts[index]["targets"].device)
            with masks, self.compute_loss_context_manager():  # type: ignore[attr-defined]
                if is_fused:
                    scored = self.method.fused(model, parts[index], totals, term_weights)
                else:
                    scored = self.method.terms(model, parts[index], totals)
            figures.setdefault(index, scored.figures)
            return scored.terms

        if not is_fused:
            return Objective(lambda index: score(index, None))
        return Objective(
            lambda index: score(index, None),
            lambda index, term_weights: score(index, term_weights).penalised,
        )

    def _is_fused(self, model: nn.Module, part: Batch) -> bool:
        """Whether losses are computed in chunks. Decided on the first batch."""
        if self.step_state.is_fused is None:
            wanted = self.args.fused_head and self.flatness_method != "exact"
            with self.compute_loss_context_manager():  # type: ignore[attr-defined]
                self.step_state.is_fused = wanted and self.method.can_fuse(model, part)
        return self.step_state.is_fused

    def _load_callback_state(self) -> None:
        """Trainer's method. Hide STATE_KEY from it: it warns about callbacks it does not know."""
        memory = self.state.stateful_callbacks.pop(STATE_KEY, None)
        super()._load_callback_state()  # type: ignore[misc]
        if memory is not None:
            self.state.stateful_callbacks[STATE_KEY] = memory

    def _sum_figures(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(parts[0])
        sums = torch.stack([torch.stack([part[n].float() for part in parts]).sum() for n in names])
        return dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))

    def names_of(self, rows: Sequence[int]) -> list[str]:
        """The names that messages give to training rows; `rows` count from 0."""
        return [str(row + 1) for row in rows]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log, with the mean of each figure over the steps since the last log.

        The log of an evaluation leaves the figures to the next log of the training.
        """
        if "loss" in logs or "train_loss" in logs:
            logs.update(self.step_state.take_figure_means())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def _half(rows: int) -> int:
    return -(-rows // 2)


def _no_room(step: int, size: int) -> str:
    rows = "1 row" if size == 1 else f"{size} rows"
    smaller = "" if size == 1 else f"set micro_batch_size: {_half(size)}, or "
    return (
        f"step {step}: out of memory with {rows} at a time; {smaller}try {CHECKPOINTING}: "
        "true, lora_rank: 16, expert_cache: states, or a shorter max_history_tokens"
    )
