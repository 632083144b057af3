"""What the cheaper penalties keep of the effect: ||grad L_S|| after equal steps.

    python -m benchmarks.effect [--steps 70]          # a quarter of an hour on two CPU cores

Real experts, real rows, the same batches; the effect is by how much ||grad L_S|| on 128 training
rows and 128 rows of other conversations lies below safety_loss's, finite_difference being 1.
Exits with 1 where the amortised penalty keeps less than 90 % of it on the training rows.
"""

import math
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Target, conclude, machine, options
from flatgd.flatness.curvature import gradient, loss_value
from flatgd.flatness.penalty import norm
from flatgd.recipe_file import load_recipe
from flatgd.run import Run
from flatgd.studies.points import Landscape

RECIPES = Path(__file__).parent.parent / "recipes"
WAYS = {
    "safety_loss": "{}",
    "flatgd": "{}",
    "fast": "{method: flatgd, flatness_method: fast}",
    "every_4th": "{method: flatgd, penalty_every: 4}",
    "quarter": "{method: flatgd, penalty_fraction: 0.25}",
    "fast_quarter": "{method: flatgd, flatness_method: fast, penalty_fraction: 0.25}",
}
AMORTISED = "fast_quarter"


def measured(run: Run) -> dict[str, tuple[float, float, float]]:
    """(||grad L_S|| on training rows, on other rows, L_S on training rows) of each method."""
    land, found = Landscape(run, 128), {}
    for name in WAYS:
        land.at(land.end(name))
        norms = [norm(gradient(land.parameters, rows)) for rows in (land.losses, land.test_losses)]
        found[name] = (norms[0], norms[1], loss_value(land.losses))
    return found


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--steps", type=int, default=70)
    parser.add_argument("--share", type=float, default=1.0, help="penalty_share")
    parser.add_argument("--output", type=Path, help="keep the run here; it resumes")
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        methods = ", ".join(f"{name}: {entry}" for name, entry in WAYS.items())
        fields = [
            f"output={(given.output or Path(place)).resolve()}",
            f"methods={{{methods}}}",
            f"train.max_steps={given.steps}",
            f"train.penalty_share={given.share}",
        ]
        run = Run(load_recipe(RECIPES / "compare.yaml", fields))
        run.experts()
        for name in WAYS:
            run.train(name)
        found = measured(run)
    print(f"\n{'':<14}{'train rows':>12}{'other rows':>12}{'L_S':>10}{'effect':>9}{'other':>8}")
    kept = {}
    for name, (train, other, loss) in found.items():
        logs = [
            math.log(found["safety_loss"][k] / found[name][k])
            / math.log(found["safety_loss"][k] / found["flatgd"][k])
            for k in (0, 1)
        ]
        kept[name] = logs[0]
        print(f"{name:<14}{train:12.3f}{other:12.3f}{loss:10.3f}{logs[0]:9.2f}{logs[1]:8.2f}")
    return conclude(
        [Target("effect kept by fast, a quarter of the rows", kept[AMORTISED], 0.9, True)]
    )


if __name__ == "__main__":
    sys.exit(main())
