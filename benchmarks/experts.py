"""The cost of the experts: reading their states from disk, and adapters that share one base.

    python -m benchmarks.experts [--repeats 9]

Compares a FlatGD step that reads the experts' states from disk with a step that has the experts'
log-probabilities for free, on the shipped backbone. Compares the weights of policy and experts as
adapters on one base with the base alone. Exits with 1 if a target is missed.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.step import steps_of
from benchmarks.table import DEMO, Target, conclude, interleaved, machine, options
from flatgd import FlatGD, FlatGDConfig, load_model
from flatgd.methods import SafetyLoss
from flatgd.models.adapters import load_together, save, with_adapter
from flatgd.models.encoding import Batch

RANK = 4


def step_without_experts(folder: Path, way: str) -> Callable[[], object]:
    """The same step with memoised outputs of the experts, so that the experts cost nothing."""
    step = steps_of(folder, way, is_cached=True)[1]
    original, said = SafetyLoss._with_experts, {}

    def remembered(self: SafetyLoss, part: Batch, keep: bool) -> Batch:
        key = tuple(part["row"].tolist())
        if key not in said:
            said[key] = original(self, part, keep)
        return said[key]

    def run() -> None:
        SafetyLoss._with_experts = remembered  # type: ignore[method-assign]
        try:
            step()
        finally:
            SafetyLoss._with_experts = original  # type: ignore[method-assign]

    return run


def shared_weights(folder: Path) -> float:
    """The weights of policy and two experts as adapters on one base, divided by the base's."""
    config = FlatGDConfig(output_dir=str(folder), lora_rank=RANK)
    for name in ("clean", "toxic"):
        save(with_adapter(load_model(DEMO / "backbone"), config), folder / name)
    base = load_model(DEMO / "backbone")
    experts = load_together({name: str(folder / name) for name in ("clean", "toxic")}, base)
    method = FlatGD(experts["clean"], experts["toxic"])
    policy = with_adapter(base, config)
    tensors = {
        tensor.data_ptr(): tensor.numel()
        for model in (policy, *method.models())
        for tensor in model.parameters()
    }
    return sum(tensors.values()) / load_model(DEMO / "backbone").num_parameters()


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of four steps")
    repeats = parser.parse_args().repeats
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        steps = {
            f"{way}, {kind}": make
            for way in ("finite_difference", "safety_loss")
            for kind, make in (
                ("cached", steps_of(folder, way, is_cached=True)[1]),
                ("none", step_without_experts(folder, way)),
                ("live", steps_of(folder, way, is_cached=False)[1]),
            )
        }
        runs = {name: lambda step=step: [step() for _ in range(4)] for name, step in steps.items()}
        taken = interleaved(runs, repeats)
        weights = shared_weights(folder)
    for name, timed in taken.items():
        print(f"{name:<28}{timed.median / 4 * 1e3:8.0f} ms per step")
    cached = {
        way: taken[f"{way}, cached"].over(taken[f"{way}, none"])
        for way in ("finite_difference", "safety_loss")
    }
    print(f"safety_loss, cached over none: {cached['safety_loss']:.3f}")
    return conclude(
        [
            Target("a FlatGD step, cached / none", cached["finite_difference"], 1.05),
            Target("weights of all three / of the base", weights, 1.15),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
