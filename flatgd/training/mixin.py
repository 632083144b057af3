"""The two passes of a step, to be put on any transformers.Trainer.

A batch comes in whole. It is split into micro-batches, each of which runs under its own random seed
in every pass, so that both passes see the same dropout masks. The finished gradient is left in
`.grad`; clipping, optimizer, scheduler and logging stay the Trainer's.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatgd.errors import NonFiniteError
from flatgd.families import IGNORE, Batch, split_batch
from flatgd.flatness import FlatGradient, Terms, exact, finite_difference, plain_gradient
from flatgd.methods.base import Method, Totals
from flatgd.training.reduction import reduction_for


class FlatnessMixin:
    """Put before a Trainer; `self.method` is the seam: what a step's objective is made of."""

    method: Method
    args: Any
    accelerator: Any
    state: Any

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None
    ) -> Tensor:
        """Leave grad J of the whole batch in `.grad`; return J without the penalty, detached."""
        begun, size = time.perf_counter(), self.args.micro_batch_size
        model.train()
        batch: Batch = self._prepare_inputs(inputs)  # type: ignore[attr-defined]
        totals = self._totals(batch)
        parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        figures: dict[int, dict[str, Tensor]] = {}
        with self.compute_loss_context_manager():  # type: ignore[attr-defined]
            parts = [self.method.prepare(part) for part in split_batch(batch, size)]

        def terms(index: int) -> Terms:
            seed = _seed(self.args.seed, self.state.global_step, self.args.process_index, index)
            with _same_masks(seed, batch["targets"].device):
                with self.compute_loss_context_manager():  # type: ignore[attr-defined]
                    scored = self.method.terms(model, parts[index], totals)
                loss = (scored.terms.penalised + scored.terms.rest).detach()
                figures.setdefault(index, {**scored.figures, "loss": loss})  # of the first pass
                return scored.terms

        flat = self._gradient(model, parameters, terms, range(len(parts)))
        step = self._sum_figures(list(figures.values()))
        self._refuse_non_finite(step, flat)
        for parameter, gradient in zip(parameters, flat.gradient, strict=True):
            parameter.grad = gradient
        loss = step.pop("loss")
        self._note(flat, step, totals, time.perf_counter() - begun)
        return torch.tensor(loss, device=batch["targets"].device)

    def _gradient(
        self, model: nn.Module, parameters: list[Tensor], terms: Any, indices: range
    ) -> FlatGradient:
        reduction = reduction_for(self.accelerator, model)
        settings = self.args.penalty_settings() if self.method.is_flat else None
        warming_up = self.state.global_step < self.args.penalty_warmup * self.state.max_steps
        with reduction.local():
            if settings is None or warming_up:
                return plain_gradient(parameters, terms, indices, reduction.reduce)
            if self.args.flatness_method == "exact":
                with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                    return exact(parameters, terms, indices, reduction.reduce, settings)
            return finite_difference(parameters, terms, indices, reduction.reduce, settings)

    def _totals(self, batch: Batch) -> Totals:
        """Reply tokens over all processes, counted before the first micro-batch runs."""
        is_safe = batch["is_safe"]
        pair = batch.get("pair", torch.full_like(is_safe, -1, dtype=torch.long))
        is_single = pair < 0
        tokens = (batch["targets"] != IGNORE).sum(1) * is_single
        counts = torch.stack(
            [
                tokens.sum(),
                (tokens * is_safe).sum(),
                (is_single & ~is_safe).sum(),
                (~is_single).sum() // 2,
            ]
        ).float()
        tokens_all, safe, toxic_rows, pairs = self.accelerator.reduce(counts, "sum").tolist()
        return Totals(max(tokens_all, 1.0), safe, toxic_rows, pairs)

    def _sum_figures(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        names = list(parts[0])
        sums = torch.stack([torch.stack([part[n].float() for part in parts]).sum() for n in names])
        return dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))

    def _refuse_non_finite(self, figures: dict[str, float], flat: FlatGradient) -> None:
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        if not bad and not all(torch.isfinite(t).all() for t in flat.gradient):
            bad = ["the gradient"]
        if bad:
            raise NonFiniteError(
                f"step {self.state.global_step + 1}: {', '.join(bad)} is NaN or infinite; nothing "
                "was updated. Lower learning_rate or penalty_share, or look at the batch's data"
            )

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
        """Trainer's log, with the mean of each figure over the steps since the last one."""
        pending = self.__dict__.pop("_pending", {})
        logs.update({name: sum(values) / len(values) for name, values in pending.items()})
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


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
