"""How much of the penalty's effect the cheaper variants keep: ||grad L_S|| after equal steps.

    python -m benchmarks.effect [--steps 70]      # about 45 minutes on two CPU cores

Uses real experts, real rows, the same batches and two seeds. The effect is how far ||grad L_S||
lies below that of safety_loss, in logarithm, with finite_difference as 1. It is measured on 768
training rows and on 768 rows of other conversations. Exits with 1 if the amortised penalty keeps
less than 90 % of the effect on training rows, averaged over the seeds.
"""

import math
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Target, conclude, machine, options
from flatgd.config.loading import load_recipe
from flatgd.flatness.curvature import gradient, loss_value
from flatgd.flatness.penalty import norm
from flatgd.pipeline.pipeline import Pipeline
from flatgd.studies.landscape import Landscape

RECIPES = Path(__file__).parent.parent / "recipes"
ROWS = 768
SEEDS = (0, 1)
WAYS = {
    "safety_loss": "{}",
    "flatgd": "{}",
    "fast": "{method: flatgd, flatness_method: fast}",
    "quarter": "{method: flatgd, penalty_fraction: 0.25}",
    "eighth": "{method: flatgd, penalty_fraction: 0.125}",
    "mean_eighth": "{method: flatgd, penalty_momentum: 0.9, penalty_fraction: 0.125}",
}
AMORTISED = "mean_eighth"


def trained(output: Path, seed: int, steps: int, share: float) -> Pipeline:
    methods = ", ".join(f"{name}: {entry}" for name, entry in WAYS.items())
    fields = [
        f"output={output.resolve()}",
        f"methods={{{methods}}}",
        f"train.max_steps={steps}",
        f"train.penalty_share={share}",
        f"seed={seed}",
    ]
    pipeline = Pipeline(load_recipe(RECIPES / "compare.yaml", fields))
    pipeline.models.experts()
    for name in WAYS:
        pipeline.models.train(name)
    return pipeline


def measured(pipeline: Pipeline) -> dict[str, tuple[float, float, float]]:
    """For each method: (||grad L_S|| on training rows, on other rows, L_S on training rows)."""
    land, found = Landscape(pipeline.context, ROWS), {}
    for name in WAYS:
        land.at(land.end(name))
        norms = [norm(gradient(land.parameters, rows)) for rows in (land.losses, land.test_losses)]
        found[name] = (norms[0], norms[1], loss_value(land.losses))
    return found


def effects(found: dict[str, tuple[float, float, float]], place: int) -> dict[str, float]:
    """Each variant's share of finite_difference's effect. `place` indexes its norms."""
    none, whole = found["safety_loss"][place], found["flatgd"][place]
    return {
        name: math.log(none / norms[place]) / math.log(none / whole)
        for name, norms in found.items()
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--share", type=float, default=1.0, help="penalty_share")
    parser.add_argument(
        "--output", type=Path, help="keep the runs in this folder; a second call resumes them"
    )
    given = parser.parse_args()
    print(machine())
    kept = []
    with tempfile.TemporaryDirectory() as place:
        for seed in SEEDS:
            output = (given.output or Path(place)) / str(seed)
            found = measured(trained(output, seed, given.steps, given.share))
            train, other = effects(found, 0), effects(found, 1)
            print(f"\nseed {seed:<9}{'train rows':>12}{'other rows':>12}{'L_S':>10}", end="")
            print(f"{'effect':>9}{'other':>8}")
            for name, (on_train, on_other, loss) in found.items():
                print(f"{name:<14}{on_train:12.3f}{on_other:12.3f}{loss:10.3f}", end="")
                print(f"{train[name]:9.2f}{other[name]:8.2f}")
            kept.append(train[AMORTISED])
    what = "effect kept by an eighth of the rows, running mean"
    return conclude([Target(what, statistics.mean(kept), 0.9, True)])


if __name__ == "__main__":
    sys.exit(main())
