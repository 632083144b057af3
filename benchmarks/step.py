"""The cost of a FlatGD step compared with a safety_loss step, on the shipped backbone.

    python -m benchmarks.step [--repeats 8]      # seven minutes on two cores

Uses real dialogue in batches of 32 rows, 60 % safe, in micro-batches of 16, with optimizer and
clipping. Each way takes turns with safety_loss. The experts run in each step (live), or their
states are read from disk (cached). "At least" is a safety_loss step and the further passes that a
way's formula has, timed alone. Exits with 1 if a target is missed.
"""

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PrinterCallback

from benchmarks.table import DEMO, Target, conclude, interleaved, machine, options
from flatgd import FlatGDConfig, FlatGDTrainer, load_model, load_tokenizer
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.dialogue import Dialogue
from flatgd.flatness import plain_gradient
from flatgd.flatness.penalty import both_gradients, penalised_gradient
from flatgd.methods import FlatGD, SafetyLoss
from flatgd.training.own_loss import with_targets
from flatgd.training.penalty_choice import MEASURED_EVERY, kept
from flatgd.training.totals import totals_of

ROWS, SAFE, BATCHES = 32, 19, 4
MEASURES = 800  # a step at which lookahead measures its distance
PLAIN = "safety_loss"
AMORTISED = "an eighth of the rows, running mean"
LATE = "finite_difference, the last quarter of the steps"


class Way(NamedTuple):
    """Settings, and the kinds of steps of a training: how many of each kind, by the number of a
    step of that kind."""

    fields: Mapping[str, Any]
    kinds: Mapping[int, int] = MappingProxyType({1: 1})


WAYS = {
    PLAIN: Way({}),
    "finite_difference": Way({}),
    "fast": Way({"flatness_method": "fast"}, {1: MEASURED_EVERY - 1, MEASURED_EVERY: 1}),
    "a quarter of the rows": Way({"penalty_fraction": 0.25}),
    AMORTISED: Way({"penalty_fraction": 0.125, "penalty_momentum": 0.9}),
    "embeddings and head left out": Way({"penalty_layers": "blocks"}),
    "the top half of the decoder": Way({"penalty_layers": 2}),
    "every 8th step, used again between": Way({"penalty_every": 8}, {1: 7, 8: 1}),
    # of 200 steps 6 measure the distance, and 9 others refresh the running mean
    "lookahead": Way({"flatness_method": "lookahead"}, {1: 185, 16: 9, MEASURES: 6}),
    "exact": Way({"flatness_method": "exact"}),
}


def rows() -> list[Dialogue]:
    """Batches with the paper's fraction of safe replies."""
    found = load_diasafety(DEMO / "data/diasafety", "train")
    safe, toxic = ([r for r in found if r.is_safe is kind] for kind in (True, False))
    return [
        row
        for n in range(BATCHES)
        for row in (*safe[n * SAFE : (n + 1) * SAFE], *toxic[n * 13 : (n + 1) * 13])
    ]


def expert(backbone: nn.Module, seed: int) -> nn.Module:
    """An untrained expert: its forward pass costs as much as a trained one's."""
    torch.manual_seed(seed)
    moved = copy.deepcopy(backbone)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return moved


def trainer_of(folder: Path, way: str, is_cached: bool) -> tuple[Any, list[Any]]:
    """A Trainer, and batches of its rows."""
    backbone = load_model(DEMO / "backbone")
    config = FlatGDConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=ROWS,
        micro_batch_size=16,
        max_steps=1000,
        penalty_warmup=0.0,
        learning_rate=1e-5,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        max_history_tokens=64,
        max_reply_tokens=32,
        expert_cache=str(folder / "states") if is_cached else None,
        **WAYS[way].fields,
    )
    kind = SafetyLoss if way == PLAIN else FlatGD
    trainer = FlatGDTrainer(
        backbone,
        config,
        train_dataset=rows(),
        processing_class=load_tokenizer(str(DEMO / "backbone")),
        method=kind(expert(backbone, 1), expert(backbone, 2)),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.create_optimizer_and_scheduler(1000)
    trainer.state.max_steps = 1000
    collate: Any = trainer.data_collator
    groups = trainer.examples
    return trainer, [collate(groups[n * ROWS : (n + 1) * ROWS]) for n in range(BATCHES)]


def steps_of(folder: Path, way: str, is_cached: bool) -> dict[int, Callable[[], object]]:
    """For each kind of step a function that runs one, optimizer included."""
    trainer, batches = trainer_of(folder, way, is_cached)

    def step(number: int, batches: Iterator[Any]) -> None:
        trainer.state.global_step = number
        kept(trainer.state)["measure_at"] = MEASURES
        trainer.training_step(trainer.model, next(batches))
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    for number in (0, 1, 2, MEASURES):  # what later steps use: a mean, lambda, the penalty, rho
        step(number, iter(batches))
    return {number: partial(step, number, cycle(batches)) for number in WAYS[way].kinds}


def passes(folder: Path) -> dict[str, Callable[[], object]]:
    """The policy's passes alone, the experts' outputs at hand: both terms in one backward pass, L_S
    alone, and each term in its own."""
    trainer, batches = trainer_of(folder, "finite_difference", True)
    parameters = list(trainer.model.parameters())

    def pass_over(way: str, gradient: Callable[..., object]) -> Callable[[], object]:
        works = []
        for batch in batches:
            batch = with_targets(trainer.model, batch)
            totals = totals_of(batch, trainer.accelerator)
            parts, split = trainer._micro_batches(batch, way, totals)
            objective = trainer._objective(trainer.model, parts, totals, {})
            given = split if gradient is both_gradients else split.penalised
            works.append(partial(gradient, parameters, objective, given, lambda gradient: None))
        turns = cycle(works)
        return lambda: next(turns)()

    return {
        "both": pass_over("plain", plain_gradient),
        "L_S": pass_over("finite_difference", penalised_gradient),
        "apart": pass_over("finite_difference", both_gradients),
    }


def over_plain(
    plain: Callable[[], object], runs: Mapping[Any, Callable[[], object]], repeats: int
) -> dict[Any, float]:
    """Each run's time divided by that of `plain`, with which they take turns."""
    taken = interleaved({PLAIN: plain, **runs}, repeats)
    return {name: taken[name].over(taken[PLAIN]) for name in runs}


def ratios(folder: Path, is_cached: bool, repeats: int) -> tuple[dict[str, float], float]:
    """The time of each way's step, as a mean over its kinds, divided by that of a safety_loss step;
    and the seconds of that."""
    (plain,) = steps_of(folder, PLAIN, is_cached).values()
    found = {PLAIN: 1.0}
    for name, way in WAYS.items():
        if name != PLAIN:
            times = over_plain(plain, steps_of(folder, name, is_cached), repeats)
            found[name] = sum(way.kinds[k] * times[k] for k in times) / sum(way.kinds.values())
    found[LATE] = (3 + found["finite_difference"]) / 4
    return found, interleaved({PLAIN: plain}, repeats)[PLAIN].median


def floors(folder: Path, is_cached: bool, repeats: int) -> dict[str, float]:
    """What a way would take if it cost no more than a safety_loss step and the passes that its
    formula has beyond that."""
    (plain,) = steps_of(folder, PLAIN, is_cached).values()
    times = over_plain(plain, passes(folder), repeats)
    both, alone, apart = (times[name] for name in ("both", "L_S", "apart"))
    return {
        "finite_difference": 1 + apart - both + alone,
        "fast": 1 + alone,
        AMORTISED: 1 + (apart - both) / 8 + alone / 8,
        "lookahead": 1 + (15 * (apart - both) + 6 * both) / 200,
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="turns that each way takes")
    repeats = parser.parse_args().repeats
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (live, live_s), (cached, cached_s) = (ratios(folder, k, repeats) for k in (False, True))
        least = [floors(folder, is_cached, repeats) for is_cached in (False, True)]
    print(f"\n{'a step':<50}{'experts live':>14}{'cached':>10}{'seconds':>16}{'at least':>16}")
    for way in live:
        times = f"{live[way] * live_s:.2f} / {cached[way] * cached_s:.2f}"
        floor = " / ".join(f"{one[way]:.2f}" for one in least if way in one)
        print(f"{way:<50}{live[way]:12.2f} x{cached[way]:8.2f} x{times:>16}{floor:>16}")
    return conclude(
        [
            Target("finite_difference, experts live", live["finite_difference"], 1.8),
            Target("finite_difference, cached", cached["finite_difference"], 2.3),
            Target("fast, live", live["fast"], 1.55),
            Target("fast, cached", cached["fast"], 1.85),
            Target("amortised, live", live[AMORTISED], 1.3),
            Target("amortised, cached", cached[AMORTISED], 1.35),
            Target("lookahead, live", live["lookahead"], 1.1),
            Target("lookahead, cached", cached["lookahead"], 1.1),
            Target(
                "exact / finite_difference", live["exact"] / live["finite_difference"], 1.6, True
            ),
            Target("exact / fast", live["exact"] / live["fast"], 2.0, True),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
