"""How much of the penalty's effect the cheaper variants keep, after equal steps.

    python -m benchmarks.effect [--steps 70] [--seeds 3] [--ways fast lookahead]

Uses real experts, real rows and the same batches for all. Two effects are measured: how far
||grad L_S|| lies below safety_loss's, in logarithm, on 256 training rows and on 256 rows of other
conversations; and how far the contrast, the NLL per token of labelled toxic replies minus that of
safe ones, lies above safety_loss's. An effect of 1 is finite_difference's. About an hour and a half
on two CPU cores. Exits with 1 if a way misses its target.

`lookahead_adam` takes Adam's first moment, of the whole objective, for lookahead's running mean.
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from torch import Tensor

from benchmarks.table import Target, conclude, machine, options
from flatgd.config.loading import load_recipe
from flatgd.flatness import Mean
from flatgd.flatness.curvature import gradient, loss_value
from flatgd.flatness.penalty import norm
from flatgd.pipeline.pipeline import Pipeline
from flatgd.studies.durability import Attacks
from flatgd.studies.landscape import Landscape
from flatgd.training.penalty_memory import stored
from flatgd.training.penalty_passes import PenaltyPasses

RECIPES = Path(__file__).parent.parent / "recipes"
ROWS = 256
ADAM = "lookahead_adam"
WAYS = {
    "fast": "flatness_method: fast",
    "quarter": "penalty_fraction: 0.25",
    "mean_eighth": "penalty_momentum: 0.9, penalty_fraction: 0.125",
    "every_8th": "penalty_every: 8",
    "late": "penalty_warmup: 0.75",
    "blocks": "penalty_layers: blocks",
    "top_half": "penalty_layers: HALF",
    "lookahead": "flatness_method: lookahead",
    ADAM: "flatness_method: lookahead, penalty_momentum: 0",  # which it does not use
}
LEAST = 0.02  # of an effect on the norm, in logarithm; a tenth of it for the contrast
TARGETS = {"mean_eighth": 0.9, "lookahead": 0.8}


class Found(NamedTuple):
    """Of one method's end point: ||grad L_S|| on training rows and on other rows, L_S on training
    rows, the contrast."""

    on_train: float
    on_other: float
    loss: float
    contrast: float


def trained(given: argparse.Namespace, output: Path, seed: int) -> Pipeline:
    entries = [f"{n}: {{method: flatgd, {WAYS[n]}}}" for n in given.ways]
    methods = ", ".join(["safety_loss: {}", "flatgd: {}", *entries])
    fields = [
        f"output={output.resolve()}",
        f"methods={{{methods.replace('HALF', str(given.half))}}}",
        f"train.max_steps={given.steps}",
        f"train.penalty_share={given.share}",
        f"seed={seed}",
        *given.set,
    ]
    pipeline = Pipeline(load_recipe(given.recipe, fields))
    pipeline.models.experts()
    for name in pipeline.context.recipe.methods:
        with adams_mean() if name == ADAM else nullcontext():
            pipeline.models.train(name)
    return pipeline


@contextmanager
def adams_mean() -> Iterator[None]:
    """Adam's first moment in place of lookahead's running mean."""

    def moment(passes: PenaltyPasses, parameters: Sequence[Tensor]) -> Mean | None:
        found = stored(passes.optimizer, parameters, "exp_avg")
        return Mean(found, norm(found)) if found else None

    with patch.object(PenaltyPasses, "_mean", moment):
        yield


def measured(pipeline: Pipeline, rows: int) -> dict[str, Found]:
    land, found = Landscape(pipeline.context, rows), {}
    attacks = Attacks(land, rows, 0)
    for name in pipeline.context.recipe.methods:
        land.at(land.end(name))
        train, other = (
            norm(gradient(land.parameters, part)) for part in (land.losses, land.test_losses)
        )
        found[name] = Found(train, other, loss_value(land.losses), attacks.contrast())
    return found


def effects(found: dict[str, Found]) -> dict[str, tuple[float, float, float]]:
    """Each way's share of finite_difference's effect: on the norm of training rows, on that of
    other rows, on the contrast. NaN where finite_difference has none worth dividing by."""
    none, whole = found["safety_loss"], found["flatgd"]

    def of(one: Found) -> tuple[float, float, float]:
        """How far it lies from safety_loss."""
        return (
            math.log(none.on_train / one.on_train),
            math.log(none.on_other / one.on_other),
            one.contrast - none.contrast,
        )

    least = (LEAST, LEAST, LEAST / 10)

    def share(one: Found) -> tuple[float, float, float]:
        parts = zip(of(one), of(whole), least, strict=True)
        train, other, contrast = (a / b if b > limit else math.nan for a, b, limit in parts)
        return train, other, contrast

    return {name: share(one) for name, one in found.items()}


def show(seed: int, found: dict[str, Found]) -> None:
    columns = ("train rows", "other rows", "L_S", "contrast", "effect", "other", "contrast")
    print(f"\nseed {seed:<10}" + "".join(f"{name:>11}" for name in columns))
    kept = effects(found)
    for name, one in found.items():
        values = [f"{value:11.3f}" for value in one] + [f"{value:11.2f}" for value in kept[name]]
        print(f"{name:<15}" + "".join(values), flush=True)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--share", type=float, default=0.3, help="penalty_share")
    parser.add_argument("--half", type=int, default=2, help="half of the decoder's blocks")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows to measure on, of either kind")
    parser.add_argument("--recipe", type=Path, default=RECIPES / "compare.yaml")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe")
    parser.add_argument(
        "--output", type=Path, help="keep the runs in this folder; a second call resumes them"
    )
    given = parser.parse_args()
    print(machine())
    kept: dict[str, list[tuple[float, float, float]]] = {name: [] for name in given.ways}
    with tempfile.TemporaryDirectory() as place:
        for seed in range(given.seeds):
            output = (given.output or Path(place)) / str(seed)
            found = measured(trained(given, output, seed), given.rows)
            show(seed, found)
            for name in given.ways:
                kept[name].append(effects(found)[name])
    print(f"\n{'mean of the seeds':<48}{'effect':>11}{'other':>11}{'contrast':>11}")
    means = {n: [statistics.mean(v) for v in zip(*of, strict=True)] for n, of in kept.items()}
    for name, values in means.items():
        print(f"{name:<48}" + "".join(f"{value:11.2f}" for value in values))
    targets = [(n, TARGETS[n], means[n]) for n in given.ways if n in TARGETS]
    return conclude(
        [Target(f"{n}: effect on the norm", v[0], least, True) for n, least, v in targets]
        + [Target(f"{n}: on contrast", v[2], least, True) for n, least, v in targets]
    )


if __name__ == "__main__":
    sys.exit(main())
