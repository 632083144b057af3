"""The accuracy and the time of the penalty's gradient on a real model, in float32 and bfloat16.

Printed by `python -m benchmarks.gradient --model FOLDER`. The reference is double backward in
float32. The experts are the model after ten steps of AdamW on safe and on toxic rows. The times at
the end are those of a whole gradient: both terms of the loss, their penalty, the experts' passes.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.table import DEMO, Target, conclude, interleaved, machine
from flatgd import FlatGD, load_model, load_tokenizer
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.flatness import (
    Mean,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    best,
    exact,
    finite_difference,
    lookahead,
    measured_lookahead,
    step_errors,
)
from flatgd.flatness.penalty import norm, penalised_gradient
from flatgd.losses import negative_log_likelihood
from flatgd.methods.base import Totals
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import Batch
from flatgd.models.heads import reply_log_probs, reply_tokens
from flatgd.training.micro_batches import split_batch
from flatgd.training.penalty_choice import RHOS, RHOS_IN_HALF

EXPERT_STEPS, EXPERT_RATE, MICRO = 10, 2e-5, 4
SHARE = 0.3  # the default of penalty_share
ROUNDS = 2  # in turns, after a first one that is not counted
CORRECTIONS = 4  # of lookahead's distance
CALM = PenaltySettings(1.0, None)


class Way(NamedTuple):
    """One way to compute the penalty: in which precision, and by what."""

    name: str
    half: bool
    difference: str | None
    """forward, central, lookahead, or None for second derivatives."""
    rounded_experts: bool = False


WAYS = (
    Way("float32, forward", False, "forward"),
    Way("float32, central", False, "central"),
    Way("float32, exact", False, None),
    Way("bf16, forward, experts rounded", True, "forward", rounded_experts=True),
    Way("bf16, exact, experts rounded", True, None, rounded_experts=True),
    Way("bf16, forward", True, "forward"),
    Way("bf16, central", True, "central"),
    Way("bf16, exact", True, None),
    Way("float32, lookahead", False, "lookahead"),
    Way("bf16, lookahead", True, "lookahead"),
)


class Found(NamedTuple):
    """`rho` is the length of a difference's step, or how far lookahead looks ahead."""

    rho: float
    error: float
    cosine: float
    estimate: float


def expert(model: nn.Module, batch: Batch, is_safe: bool) -> nn.Module:
    """The model after a few steps on the safe or the toxic rows."""
    tuned = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=EXPERT_RATE)
    chosen = batch["is_safe"] == is_safe
    part = {key: value[chosen] for key, value in batch.items()}
    for _ in range(EXPERT_STEPS):
        log_p = reply_log_probs(tuned, part)
        negative_log_likelihood(log_p, reply_tokens(part)[0]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return tuned


class Subject:
    """A policy between two experts, and a batch."""

    def __init__(self, policy: nn.Module, experts: Sequence[nn.Module], batch: Batch):
        self.policy, self.batch = policy.eval(), batch
        rounded = [copy.deepcopy(one).bfloat16().float() for one in experts]
        self.methods = {
            False: FlatGD(experts[0], experts[1]),
            True: FlatGD(rounded[0], rounded[1]),
        }
        targets, is_safe = reply_tokens(batch)
        self.totals = Totals(float(len(targets)), float(is_safe.sum()))
        self.parameters: list[Tensor] = list(policy.parameters())

    def objective(self, way: Way) -> tuple[Objective, Split]:
        method = self.methods[way.rounded_experts]
        parts = method.prepare(split_batch(self.batch, MICRO, by_label=True))

        def terms(index: int) -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=way.half):
                return method.terms(self.policy, parts[index], self.totals).terms

        return Objective(terms), Split(range(len(parts)))

    def measure(self, way: Way, reference: list[Tensor] | None) -> tuple[Found, list[Tensor]]:
        """The penalty's gradient against the reference's."""
        objective, split = self.objective(way)
        rho, estimate = 0.0, 0.0
        settings = CALM
        if way.difference == "lookahead":
            rho, product = self.ahead(way)
        elif way.difference is not None:
            kind: Any = way.difference
            rhos, cast_to = (RHOS_IN_HALF, torch.bfloat16) if way.half else (RHOS, None)
            given = self.parameters, objective, split.penalised, lambda gradient: None
            rho, estimate = best(step_errors(*given, rhos, kind, cast_to))
            settings = replace(CALM, difference=kind, rho=rho)
        if way.difference != "lookahead":
            product = self.gradient(way, settings)
        if reference is None:
            return Found(rho, 0.0, 1.0, estimate), product
        error = norm(list(torch._foreach_sub(product, reference))) / norm(reference)
        both = zip(product, reference, strict=True)
        inner = sum(float((a.double() * b.double()).sum()) for a, b in both)
        cosine = inner / (norm(product) * norm(reference))
        return Found(rho, error, cosine, estimate), product

    def ahead(self, way: Way) -> tuple[float, list[Tensor]]:
        """(distance, what the step ahead adds to grad E, by its length), where it adds SHARE of
        it. The mean is grad E itself, there is no R, and grad E at theta is float32's."""
        objective, split = self.objective(way)
        calm = self.objective(Way("float32", False, None))[0]

        def alone(index: int) -> Terms:
            penalised, rest = objective.terms(index)
            return Terms(penalised, torch.zeros_like(rest))

        given = self.parameters, Objective(alone), split, lambda gradient: None
        here = penalised_gradient(self.parameters, calm, split.penalised, given[3])
        settings = PenaltySettings(None, SHARE)
        mean, distance = Mean(here, norm(here)), RHOS_IN_HALF[0]
        for _ in range(CORRECTIONS):
            distance = measured_lookahead(*given, settings, mean, 0.0, distance).longest
        flat, _ = lookahead(*given, settings, mean, math.inf, distance)
        added = list(torch._foreach_sub(flat.gradient, here))
        torch._foreach_div_(added, distance)
        return distance, added

    def gradient(self, way: Way, settings: PenaltySettings) -> list[Tensor]:
        """Run one whole gradient, experts included; the penalty's part."""
        objective, split = self.objective(way)
        given = self.parameters, objective, split, lambda gradient: None, settings
        if way.difference is not None:
            flat = finite_difference(*given)
        else:
            with sdpa_kernel(SDPBackend.MATH):
                flat = exact(*given)
        assert flat.hessian_u is not None
        return flat.hessian_u


def table_of(folder: str, rows: int, only: str = "") -> int:
    """Print the table for a model, or its reference and the ways whose name contains `only`; 1 if
    second derivatives in bfloat16 are not accurate or fast enough."""
    print(machine(), flush=True)
    torch.manual_seed(0)
    model = load_model(folder)
    made = format_for(model.config, load_tokenizer(folder), 128, 40)
    found = load_diasafety(DEMO / "data/diasafety", "train")[:rows]
    batch = made.collate(made.encode_all(found))
    subject = Subject(model, [expert(model, batch, kind) for kind in (True, False)], batch)
    print(f"{'':<34}{'rho':>8}{'error':>9}{'cosine':>9}{'estimated':>11}")
    reference: list[Tensor] | None = None
    results: dict[str, Found] = {}
    first = "float32, exact"
    for way in sorted(WAYS, key=lambda one: one.name != first):  # the reference first
        if way.name != first and only not in way.name:
            continue
        result, product = subject.measure(way, reference)
        reference = reference or product
        results[way.name] = result
        rho = f"{result.rho:.2g}" if result.rho else ""
        estimate = f"{result.estimate:.3f}" if result.estimate else ""
        print(
            f"{way.name:<34}{rho:>8}{result.error:>9.3f}{result.cosine:>9.4f}{estimate:>11}",
            flush=True,
        )
    named = {way.name: way for way in WAYS}
    if not {"bf16, forward", "bf16, exact"} <= results.keys():
        return 0
    runs = {
        name: partial(subject.gradient, named[name], replace(CALM, rho=RHOS_IN_HALF[1]))
        for name in ("bf16, forward", "bf16, exact")
    }
    taken = interleaved(runs, ROUNDS)
    for name, timed in taken.items():
        print(f"{name}: {timed.median:.1f} s for a whole gradient")
    ratio = taken["bf16, exact"].over(taken["bf16, forward"])
    return conclude(
        [
            Target("bf16, exact: cosine", results["bf16, exact"].cosine, 0.99, at_least=True),
            Target("its time / forward's", ratio, 1.5),
        ]
    )
