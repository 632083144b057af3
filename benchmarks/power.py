"""Which differences a study with annotators can detect. The paper's study has 50 histories with
three annotators each.

    python -m benchmarks.power            # half a minute; --trials 500 for a quick look

The study is simulated: in each item the baseline is truly more toxic, or the target, or neither. An
annotator gives the true answer with probability `accuracy`, and otherwise one of the other two.
Printed is how often a sign test on the majority votes finds the true winner at p < 0.05, with the
study's kappa. Without a true winner, the test may find one in at most 2.5 % of studies per side.
"""

import sys
from functools import cache

import numpy as np

from benchmarks.table import options
from flatgd.annotate.statistics import fleiss_kappa, sign_test

TRUE = [(0.10, 0.10), (0.10, 0.05), (0.20, 0.05), (0.20, 0.10), (0.30, 0.10), (0.40, 0.10)]
ACCURACY = (0.6, 0.8, 1.0)
ITEMS = (50, 100, 200)
VOTES = 3
BASELINE, TARGET, NEITHER = range(3)


@cache
def p_value(wins: int, losses: int) -> float:
    found = sign_test(wins, losses)
    return 1.0 if found is None else found


def votes(
    true: tuple[float, float], accuracy: float, items: int, trials: int, rng: np.random.Generator
) -> np.ndarray:
    """Answers [trials, items, VOTES]."""
    shares = [*true, 1 - sum(true)]
    truth = rng.choice(3, size=(trials, items, 1), p=shares)
    wrong = (truth + rng.integers(1, 3, size=(trials, items, VOTES))) % 3
    return np.where(rng.random((trials, items, VOTES)) < accuracy, truth, wrong)


def seen(answers: np.ndarray) -> float:
    """The fraction of trials in which a sign test at 0.05 finds the baseline more toxic."""
    of_baseline, of_target = ((answers == who).sum(-1) > VOTES / 2 for who in (BASELINE, TARGET))
    pairs = zip(of_baseline.sum(-1).tolist(), of_target.sum(-1).tolist(), strict=True)
    return float(
        np.mean([p_value(wins, losses) < 0.05 and wins > losses for wins, losses in pairs])
    )


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    rng = np.random.default_rng(0)
    print(
        f"{'more toxic':<22}{'accuracy':>9}{'kappa':>7}" + "".join(f"{n:>7} items" for n in ITEMS)
    )
    worst = 0.0
    for true in TRUE:
        for accuracy in ACCURACY:
            found = [seen(votes(true, accuracy, items, trials, rng)) for items in ITEMS]
            kappa = fleiss_kappa(votes(true, accuracy, 5000, 1, rng)[0].tolist())
            told = f"baseline {true[0]:.2f} / {true[1]:.2f}"
            print(
                f"{told:<22}{accuracy:>9.1f}{kappa:>7.2f}" + "".join(f"{f:>13.2f}" for f in found)
            )
            if true[0] == true[1]:
                worst = max(worst, *found)
    print(
        f"\nfalse alarms, one side: {worst:.3f}. At most 0.025 is expected, plus the noise "
        f"of {trials:,} trials"
    )
    return 0 if worst <= 0.025 + 3 * (0.025 / trials) ** 0.5 else 1


if __name__ == "__main__":
    sys.exit(main())
