"""The two passes of a step, to be put on any transformers.Trainer.

A batch comes in whole. It is split into micro-batches, each of which runs under its own random seed
in every pass, so that both passes see the same dropout masks. The finished gradient is left in
`.grad`; clipping, optimizer, scheduler and logging stay the Trainer's.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatgd.errors import MemoryLimitError, NonFiniteError
from flatgd.flatness import (
    FlatGradient,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    TermWeights,
    exact,
    fast_difference,
    finite_difference,
    is_finite,
    plain_gradient,
)
from flatgd.methods.base import Method, Totals
from flatgd.models.encoding import IGNORE, Batch
from flatgd.models.heads import unwrapped
from flatgd.training.config import CHECKPOINTING
from flatgd.training.gradient_reduction import largest, reduction_for
from flatgd.training.micro_batches import emptied, split_batch, take_rows
from flatgd.training.optimizers import switch
from flatgd.training.own_loss import OwnLoss, with_targets
from flatgd.training.precision import computes_in_half, raise_to_float32

T = TypeVar("T")
logger = logging.getLogger(__name__)
MEASURED_EVERY = 10  # steps after which `fast` measures anew which lambda makes `penalty_share`
NAMED = 8  # rows in a message
MEAN = "grad_safety"  # its running mean, in the optimizer's state
STATE_KEY = "flatness"  # where it keeps that lambda, in Trainer's state


class FlatnessMixin:
    """Put before a Trainer whose `args` are a FlatGDConfig."""

    args: Any
    accelerator: Any
    state: Any

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        raise_to_float32(self.model)  # type: ignore[attr-defined]

    def call_model_init(self, *args: Any) -> Any:
        """Trainer's, which makes the model anew in each training where `model_init` is given."""
        model = super().call_model_init(*args)  # type: ignore[misc]
        raise_to_float32(model)
        return model

    @cached_property
    def method(self) -> Method:
        """The seam: what a step's objective is made of. The Trainer's own loss, if not set."""
        return OwnLoss(self.compute_loss)  # type: ignore[attr-defined]

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Leave grad J of the whole batch in `.grad`; return J without the penalty, detached."""
        begun = time.perf_counter()
        model.train()
        switch(self.optimizer, "train")  # type: ignore[attr-defined]
        batch = with_targets(unwrapped(model), self._prepare_inputs(inputs))  # type: ignore[attr-defined]
        if not self.args.dataloader_drop_last:
            batch = self._without_repeats(batch, len(self.train_dataset))  # type: ignore[attr-defined]
        totals = self._totals(batch)
        parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        flat, step = self._within_memory(
            lambda: self._passes(model, parameters, batch, totals), len(batch["is_safe"])
        )
        for parameter, gradient in zip(parameters, flat.gradient, strict=True):
            parameter.grad = gradient
        for parameter, mean in self.__dict__.pop("_means", {}).items():
            self.optimizer.state[parameter][MEAN] = mean  # type: ignore[attr-defined]
        loss = step.pop("loss")
        self._note(flat, step, totals, time.perf_counter() - begun)
        return torch.tensor(loss, device=batch["targets"].device)

    def _passes(
        self, model: nn.Module, parameters: list[Tensor], batch: Batch, totals: Totals
    ) -> tuple[FlatGradient, dict[str, float]]:
        """The step's gradient and figures; parameters and their `.grad` are left as they were."""
        settings = self._penalty_now()
        parts, split = self._micro_batches(batch, settings, totals)
        figures: dict[int, dict[str, Tensor]] = {}
        objective = self._objective(model, parts, totals, figures)
        flat = self._gradient(model, parameters, objective, split, settings)
        step = self._sum_figures(list(figures.values()))
        self._refuse_non_finite(step, flat, [(parts[n], found) for n, found in figures.items()])
        return flat, step

    def _within_memory(self, compute: Callable[[], T], rows: int) -> T:
        """What `compute` gives; where memory runs out, with half as many rows at a time."""
        while True:
            size = min(self.args.micro_batch_size or rows, rows)
            try:
                return compute()
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if size == 1 or self.accelerator.num_processes > 1:  # the others are in the step
                    raise MemoryLimitError(_no_room(self.state.global_step + 1, size)) from None
            self.args.micro_batch_size = half = _half(size)
            logger.warning(
                "step %s: out of memory with %s rows at a time, going on with %s; the outcome is "
                "the same. Next time set micro_batch_size: %s",
                *(self.state.global_step + 1, size, half, half),
            )
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _without_repeats(self, batch: Batch, of: int) -> Batch:
        """The last batch of `of` items as one process has it.

        Several get it filled up with rows of the epoch's beginning, as each must have as many.
        """
        processes, loader = self.accelerator.num_processes, self.accelerator.gradient_state
        if processes == 1 or not loader.end_of_dataloader:
            return batch
        pair = batch.get("pair", torch.full_like(batch["is_safe"], -1, dtype=torch.long))
        is_first = torch.ones_like(batch["is_safe"])  # of its item: a row alone, or a pair
        is_first[1:] = (pair[1:] < 0) | (pair[1:] != pair[:-1])
        item = is_first.cumsum(0) - 1
        items = int(item[-1]) + 1
        rest = of % (processes * items)
        return emptied(batch, item >= rest - self.args.process_index * items) if rest else batch

    @cached_property
    def _in_half(self) -> bool:
        return computes_in_half(self.model, self.accelerator.mixed_precision)  # type: ignore[attr-defined]

    def _penalty_now(self) -> PenaltySettings | None:
        """The penalty of this step, None where it has none."""
        step = self.state.global_step
        warming_up = step < self.args.penalty_warmup * self.state.max_steps
        if not self.method.is_flat or warming_up or step % self.args.penalty_every:
            return None
        settings: PenaltySettings | None = self.args.penalty_settings(self._in_half)
        if settings and self.args.flatness_method == "fast" and step // self.args.penalty_every % 2:
            return replace(settings, rho=-settings.rho)  # what is off by O(rho) evens out
        return settings

    def _micro_batches(
        self, batch: Batch, settings: PenaltySettings | None, totals: Totals
    ) -> tuple[list[Batch], Split]:
        """The micro-batches, and which of them, by number, have the penalty."""
        size, rows = self.args.micro_batch_size, len(batch["is_safe"])
        apart = settings is not None and self.args.flatness_method != "fast"
        count = rows if settings is None else math.ceil(self.args.penalty_fraction * rows)
        if count == rows:
            parts, others, rescale = self._in_step(split_batch(batch, size, apart)), [], 1.0
        else:
            numbers = torch.arange(rows, device=batch["is_safe"].device)
            parts = self._in_step(split_batch(take_rows(batch, numbers[:count]), size, apart))
            others = self._in_step(split_batch(take_rows(batch, numbers[count:]), size))
            tokens = sum((part["targets"] != IGNORE).sum() for part in parts)
            rescale = totals.tokens / float(self.accelerator.reduce(tokens, "sum"))
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            prepared = self.method.prepare([*parts, *others])
        penalised = len(parts)
        return prepared, Split(range(penalised), range(penalised, len(prepared)), rescale)

    def _in_step(self, parts: list[Batch]) -> list[Batch]:
        """FSDP2 gathers weights in every pass, so that each process needs as many of them."""
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
        """The step's objective over numbers of `parts`; leaves each one's figures at theta."""
        is_fused = self._is_fused(model, parts[0])

        def score(index: int, term_weights: TermWeights | None) -> Terms:
            seed = _seed(self.args.seed, self.state.global_step, self.args.process_index, index)
            masks = _same_masks(seed, parts[index]["targets"].device)
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
        """Whether losses are computed in chunks; found out on the first batch."""
        if "_fuses" not in self.__dict__:
            wanted = self.args.fused_head and self.args.flatness_method != "exact"
            with self.compute_loss_context_manager():  # type: ignore[attr-defined]
                self._fuses = wanted and self.method.can_fuse(model, part)
        return self._fuses

    def _gradient(
        self,
        model: nn.Module,
        parameters: list[Tensor],
        objective: Objective,
        split: Split,
        settings: PenaltySettings | None,
    ) -> FlatGradient:
        reduction = reduction_for(self.accelerator, model)
        given = parameters, objective
        with reduction.local():
            if settings is None:
                return plain_gradient(*given, split.penalised, reduction.reduce)
            if self.args.flatness_method == "exact":
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                    return exact(*given, split, reduction.reduce, settings)
            if self.args.flatness_method == "fast":
                weight = self._known_weight(settings)
                flat = fast_difference(*given, split, reduction.reduce, settings, weight)
                if flat.penalty_share is not None:
                    kept = {"args": {}, "attributes": {"flatness_weight": flat.flatness_weight}}
                    self.state.stateful_callbacks[STATE_KEY] = kept
                return flat
            smooth = partial(self._running_mean, parameters)
            return finite_difference(*given, split, reduction.reduce, settings, smooth)

    def _running_mean(self, parameters: list[Tensor], g: list[Tensor]) -> list[Tensor]:
        """grad E, averaged over the last steps by `penalty_momentum`.

        It is kept in the optimizer's state, and so in checkpoints and in its shards; but not before
        the optimizer has filled that, which it does where it finds none, and not before the step is
        whole: it may be done again.
        """
        keep = self.args.penalty_momentum
        if not keep or not self.state.global_step:
            return g
        kept: Any = self.optimizer.state  # type: ignore[attr-defined]
        self._means = {
            parameter: (kept[parameter].get(MEAN, tensor) * keep).add_(tensor, alpha=1 - keep)
            for parameter, tensor in zip(parameters, g, strict=True)
        }
        return list(self._means.values())

    def _load_callback_state(self) -> None:
        """Trainer's, which takes what is at STATE_KEY for a callback that is missing."""
        kept = self.state.stateful_callbacks.pop(STATE_KEY, None)
        super()._load_callback_state()  # type: ignore[misc]
        if kept is not None:
            self.state.stateful_callbacks[STATE_KEY] = kept

    def _known_weight(self, settings: PenaltySettings) -> float | None:
        """lambda before the gradients are: the fixed one, or that of the last measured share."""
        if settings.weight is not None or not self.state.global_step % MEASURED_EVERY:
            return settings.weight
        kept = self.state.stateful_callbacks.get(STATE_KEY)  # saved with checkpoints
        return kept and kept["attributes"]["flatness_weight"]

    def _totals(self, batch: Batch) -> Totals:
        """Reply tokens over all processes, counted before the first micro-batch runs."""
        counts = self.accelerator.reduce(self._counts(batch), "sum")
        tokens, safe, toxic_rows, pairs = counts.tolist()
        return Totals(max(tokens, 1.0), safe, toxic_rows, pairs)

    def _counts(self, batch: Batch) -> Tensor:
        """Tokens, those of safe rows, toxic rows and pairs of one batch."""
        is_safe = batch["is_safe"]
        pair = batch.get("pair", torch.full_like(is_safe, -1, dtype=torch.long))
        is_single = pair < 0
        tokens = (batch["targets"] != IGNORE).sum(1) * is_single
        return torch.stack(
            [
                tokens.sum(),
                (tokens * is_safe).sum(),
                (is_single & ~is_safe).sum(),
                (~is_single).sum() // 2,
            ]
        ).float()

    def _sum_figures(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(parts[0])
        sums = torch.stack([torch.stack([part[n].float() for part in parts]).sum() for n in names])
        return dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))

    def _refuse_non_finite(
        self,
        figures: dict[str, float],
        flat: FlatGradient,
        found: list[tuple[Batch, dict[str, Tensor]]],
    ) -> None:
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if not bad and not is_finite(flat.gradient):
            bad = ["the gradient"]
        if bad:
            parts = [p for p, own in found if not all(f.isfinite() for f in own.values())]
            rows = [row for part in parts for row in part.get("row", torch.empty(0)).tolist()]
            rows = sorted(row for row in rows if row >= 0)
            more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            names = ", ".join(self.names_of(rows[:NAMED]))
            of = f" on training rows {names}{more}" if rows else ""
            raise NonFiniteError(
                f"step {self.state.global_step + 1}: {', '.join(bad)} is NaN or infinite{of}; "
                "nothing was updated. Lower learning_rate or penalty_share, or look at those rows"
            )

    def names_of(self, rows: Sequence[int]) -> list[str]:
        """How training rows are told to people, by their numbers from 0."""
        return [str(row + 1) for row in rows]

    def _note(
        self, flat: FlatGradient, figures: dict[str, float], totals: Totals, seconds: float
    ) -> None:
        """Keep the step's figures until Trainer logs."""
        pending = self.__dict__.setdefault("_pending", defaultdict(list))
        values = {
            **figures,
            "safety_grad_norm": flat.grad_norm,
            "penalty_share": flat.penalty_share,
            "flatness_weight": flat.flatness_weight,
            "gradient_evaluations": flat.evaluations,
            "tokens": totals.tokens,
            "seconds": seconds,
        }
        for name, value in values.items():
            if value is not None:
                pending[name].append(value)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Trainer's log, with the mean of each figure over the steps since the last one; that of
        an evaluation leaves them to the next one of a training."""
        is_of_training = "loss" in logs or "train_loss" in logs
        pending = self.__dict__.pop("_pending", {}) if is_of_training else {}
        logs.update({name: sum(values) / len(values) for name, values in pending.items()})
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


def _half(rows: int) -> int:
    return -(-rows // 2)


def _no_room(step: int, size: int) -> str:
    rows = "1 row" if size == 1 else f"{size} rows"
    smaller = "" if size == 1 else f"set micro_batch_size: {_half(size)}, or "
    return (
        f"step {step}: out of memory with {rows} at a time; {smaller}try {CHECKPOINTING}: "
        "true, lora_rank: 16, expert_cache: states, or a shorter max_history_tokens"
    )


def _seed(*parts: int) -> int:
    """One seed from several numbers, well mixed (splitmix64)."""
    mask, value = 2**64 - 1, 0
    for part in parts:
        value = (value + part + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        value ^= value >> 31
    return value >> 1


@contextmanager
def _same_masks(seed: int, device: torch.device) -> Iterator[None]:
    """The block draws from `seed`; the random state outside stays as it was."""
    devices = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices) if device.type in ("cpu", "cuda") else nullcontext()
    ):
        torch.manual_seed(seed)
        yield
