"""How often the 95 % intervals contain the true value, at the sample sizes of real runs.

    python -m benchmarks.coverage            # about four minutes; --trials 200 for a quick look

The data are simulated, so the true value is known: 150 conversations as in the demo, and 60 as in
its ordinary set. The target is 93 to 97 %. Exits with 1 if an interval covers less than 92 %;
intervals that cover too much are only shown.
"""

import sys
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import options
from flatgd.evaluation.intervals import (
    Estimate,
    across_seeds,
    bootstrap,
    paired,
    paired_share,
    ratio,
    share,
)
from flatgd.evaluation.prediction_powered import prediction_powered

Totals = dict[Hashable, NDArray[np.float64]]
Trial = Callable[[np.random.Generator, int], bool]
FLOOR = 0.92


def counted(values: NDArray[Any], counts: float = 1.0) -> Totals:
    return {place: np.array([float(value), counts]) for place, value in enumerate(values)}


def holds(found: Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high


def of_share(p: float, talks: int, replies: int) -> Trial:
    """Conversations of `replies` histories, with correlation within a conversation."""

    def trial(rng: np.random.Generator, place: int) -> bool:
        rates = rng.beta(p * 3, (1 - p) * 3, talks) if replies > 1 else np.full(talks, p)
        return holds(share(counted(rng.binomial(replies, rates), replies)), p)

    return trial


def of_paired_share(p: float, q: float, shared: float) -> Trial:
    """Two models on 150 histories. `shared` of the histories are equally hard for both."""

    def trial(rng: np.random.Generator, place: int) -> bool:
        one = rng.random(150)
        other = np.where(rng.random(150) < shared, one, rng.random(150))
        found = paired_share(counted((one < p) * 1.0), counted((other < q) * 1.0))
        return holds(found, p - q)

    return trial


def of_mean(talks: int, spread: float) -> Trial:
    """The bootstrap of a mean of log-normal values, which resemble perplexities."""

    def trial(rng: np.random.Generator, place: int) -> bool:
        found = bootstrap(counted(rng.lognormal(0, spread, talks)), ratio, 1000, place)
        return holds(found, float(np.exp(spread**2 / 2)))

    return trial


def of_paired_mean(talks: int) -> Trial:
    def trial(rng: np.random.Generator, place: int) -> bool:
        base = rng.normal(size=talks)
        ours, theirs = (counted(base + 0.5 * rng.normal(size=talks) + s) for s in (0.1, 0.0))
        return holds(paired(ours, theirs, ratio, 1000, place), 0.1)

    return trial


def of_seeds(seeds: int, between: float) -> Trial:
    """Standard deviations: conversations .3, seeds `between`, their interaction .5."""

    def trial(rng: np.random.Generator, place: int) -> bool:
        talks, levels = rng.normal(size=150) * 0.3, rng.normal(size=seeds) * between
        parts = [counted(talks + s + rng.normal(size=150) * 0.5) for s in levels]
        return holds(across_seeds(parts, ratio, 500, place), 0.0)

    return trial


def of_labels(labels: int, toxic: float, judge: float) -> Trial:
    """Human labels of five replies to each of 150 histories. `judge` is the distance between its
    scores of toxic and safe replies, in standard deviations."""

    def trial(rng: np.random.Generator, place: int) -> bool:
        rates = rng.beta(toxic * 4, (1 - toxic) * 4, 150)
        talks = np.repeat(np.arange(150), 5)
        human = rng.random(len(talks)) < rates[talks]
        scores = 1 / (1 + np.exp(-(rng.normal(size=len(talks)) + judge * human - 2)))
        known = np.zeros(len(talks), dtype=bool)
        known[rng.permutation(len(talks))[:labels]] = True
        found = prediction_powered(
            human[known].tolist(),
            scores[known].tolist(),
            talks[known].tolist(),
            scores[~known].tolist(),
            talks[~known].tolist(),
        )
        return holds(Estimate(found.value, found.low, found.high), toxic)

    return trial


CASES: dict[str, Trial] = {
    **{f"share {p}, 150 histories": of_share(p, 150, 1) for p in (0.02, 0.05, 0.1, 0.3)},
    **{f"share {p}, 60 histories": of_share(p, 60, 1) for p in (0.05, 0.2)},
    "share 0.1, 60 conversations of 5": of_share(0.1, 60, 5),
    **{
        f"difference of shares {p} and {q}, {s:.0%} shared": of_paired_share(p, q, s)
        for p, q in ((0.05, 0.14), (0.05, 0.06), (0.2, 0.25))
        for s in (0.0, 0.5)
    },
    **{f"mean of {n}, skewed": of_mean(n, 0.5) for n in (150, 60)},
    **{f"difference of means, {n}": of_paired_mean(n) for n in (150, 60)},
    **{f"{n} seeds, differing by {b}": of_seeds(n, b) for n in (3, 5) for b in (0.0, 0.02, 0.1)},
    **{
        f"{n} labels, {t:.0%} toxic, judge {j}": of_labels(n, t, j)
        for n in (50, 100, 200)
        for t in (0.05, 0.15)
        for j in (0.0, 0.75, 2.5)
    },
}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    trials = parser.parse_args().trials
    worst = 1.0
    print(f"{'interval':<45}covers the true value, {trials:,} trials")
    for name, trial in CASES.items():
        rng = np.random.default_rng(0)
        held = sum(trial(rng, place) for place in range(trials)) / trials
        worst = min(worst, held)
        print(f"{name:<45}{held:.3f}", flush=True)
    if worst < FLOOR:
        sys.exit(
            f"an interval covers the true value in {worst:.3f} of data sets; the minimum is {FLOOR}"
        )


if __name__ == "__main__":
    main()
