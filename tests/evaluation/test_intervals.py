"""Intervals: by hand, on degenerate data, and by simulation at the sizes that runs use."""

import math
from collections.abc import Hashable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatgd.evaluation.intervals import (
    UNDEFINED,
    Estimate,
    across_seeds,
    bootstrap,
    difference_of_means,
    exp_ratio,
    holm,
    jackknife,
    paired,
    paired_across_seeds,
    paired_share,
    paired_shares,
    ratio,
    share,
    sum_by,
)
from flatgd.evaluation.prediction_powered import prediction_powered

HISTORIES = 150  # of the demo, one from each conversation
TRIALS = 1000
SLACK = 0.02  # 2.9 standard errors of a coverage of .95 over 1,000 trials


def counted(values: np.ndarray) -> dict[Hashable, np.ndarray]:
    return {place: np.array([float(value), 1.0]) for place, value in enumerate(values)}


@pytest.mark.parametrize("p", [0.03, 0.1, 0.3])
def test_coverage_of_a_share(p: float) -> None:
    """Holds the truth in at least 93 % of data sets, and in 98 % at most where the share is small:
    there a binomial has few values, and no interval can do better than come near."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(TRIALS):
        found = share(counted(rng.random(HISTORIES) < p))
        held += found.low <= p <= found.high
    assert 0.93 <= held / TRIALS <= 0.98


@pytest.mark.parametrize(("p", "q"), [(0.04, 0.10), (0.20, 0.25)])
def test_coverage_of_a_paired_difference_of_shares(p: float, q: float) -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(TRIALS):
        shared = rng.random(HISTORIES)  # hard histories are hard for both
        theirs = np.where(rng.random(HISTORIES) < 0.5, shared, rng.random(HISTORIES))
        found = paired_share(counted(shared < p), counted(theirs < q))
        held += found.low <= p - q <= found.high
    assert 0.93 <= held / TRIALS <= 0.95 + SLACK


@pytest.mark.parametrize(("seeds", "between"), [(3, 0.02), (5, 0.1)])
def test_coverage_over_seeds(seeds: int, between: float) -> None:
    """Values of seed s on conversation c: c's own, s's own, and their meeting. Where seeds differ
    little what they differ by on the conversations at hand counts twice, so it holds too often."""
    rng = np.random.default_rng(3)
    held, trials = 0, 400
    for trial in range(trials):
        talks = rng.normal(size=HISTORIES) * 0.3
        levels = rng.normal(size=seeds) * between
        parts = [counted(talks + s + rng.normal(size=HISTORIES) * 0.5) for s in levels]
        found = across_seeds(parts, ratio, 200, trial)
        held += found.low <= 0.0 <= found.high
    assert 0.92 <= held / trials <= 0.995


@pytest.mark.parametrize(
    ("labels", "toxic", "judge"), [(50, 0.15, 0.0), (100, 0.05, 0.75), (100, 0.3, 2.5)]
)
def test_coverage_of_prediction_powered_toxicity(labels: int, toxic: float, judge: float) -> None:
    """Five replies to each history, alike within one; `judge` is how far apart it scores toxic and
    safe ones, 0 not at all. However poor it is, 93 to 97 % hold the truth; a good one narrows."""
    rng = np.random.default_rng(4)
    held, width, alone = 0, 0.0, 0.0
    for _ in range(TRIALS):
        rates = rng.beta(toxic * 4, (1 - toxic) * 4, HISTORIES)
        talks = np.repeat(np.arange(HISTORIES), 5)
        human = rng.random(len(talks)) < rates[talks]
        scores = 1 / (1 + np.exp(-(rng.normal(size=len(talks)) + judge * human - 2)))
        known = np.zeros(len(talks), dtype=bool)
        known[rng.permutation(len(talks))[:labels]] = True
        found = prediction_powered(
            human[known], scores[known], talks[known], scores[~known], talks[~known]
        )
        without = prediction_powered(human[known], scores[known] * 0, talks[known], [], [])
        held += found.low <= toxic <= found.high
        width += found.high - found.low
        alone += without.high - without.low
    assert 0.93 <= held / TRIALS <= 0.97 + SLACK / 2
    assert width <= alone * 1.01
    if judge > 2:
        assert width < 0.85 * alone


def test_prediction_powered_by_hand() -> None:
    """Four labels Y = 1, 0, 0, 1 with scores 1, 0, 0, 1, four more scores 1, 1, 1, 0, each in a
    conversation of its own. Influences: labels (+.5, -.5, -.5, +.5) / 4; judge the same over the
    labelled, and -(.25, .25, .25, -.75) / 4 over the rest. tau = sum of products / sum of squares =
    (4 * .25) / (4 * .25 + 3 * .0625 + .5625) = 1 / 1.75; the value is .5 + tau * (.75 - .5)."""
    human, judged = [True, False, False, True], [1.0, 0.0, 0.0, 1.0]
    found = prediction_powered(human, judged, list("abcd"), [1.0, 1.0, 1.0, 0.0], list("efgh"))
    assert found.tau == pytest.approx(1 / 1.75)
    assert found.value == pytest.approx(0.5 + 0.25 / 1.75)
    assert found.labels_only == 0.5


@pytest.mark.parametrize(
    ("human", "rest"),
    [([], []), ([True], []), ([False] * 9, [0.1] * 30), ([True] * 9, []), ([True, False], [0.5])],
)
def test_degenerate_labels_give_a_number_or_none(human: list[bool], rest: list[float]) -> None:
    scores = [0.5] * len(human)
    talks = list(range(len(human)))
    found = prediction_powered(human, scores, talks, rest, [n + 100 for n in range(len(rest))])
    assert all(value is None or math.isfinite(value) for value in found)
    if human and len(human) > 1:
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.high - found.low > 0.05  # nine equal labels are not certainty


@given(st.lists(st.floats(0, 1), max_size=6))
def test_no_statistic_is_ever_nan(values: list[float]) -> None:
    totals = counted(np.array(values))
    found = [share(totals), paired_share(totals, totals), across_seeds([totals] * 3, ratio, 50, 0)]
    found.append(paired_across_seeds([totals] * 2, [totals] * 2, ratio, 50, 0))
    found.append(jackknife(values[0] if values else None, values))
    for estimate in found:
        assert all(part is None or math.isfinite(part) for part in estimate)
    if not values:
        assert found[0] == found[1] == UNDEFINED


def test_no_success_in_many_is_no_certainty() -> None:
    found = share(counted(np.zeros(150)))
    assert found.value == found.low == 0.0
    assert 0.01 < found.high < 0.06
    same = paired_share(counted(np.zeros(150)), counted(np.zeros(150)))
    assert same.low < 0.0 < same.high
    assert same.p > 0.9


def test_shares_keep_their_interval_over_seeds() -> None:
    """None of 150 in any of three seeds is no certainty either; a share stays in 0..1."""
    none, one = np.zeros(150), np.eye(150)[0]
    found = share(*[counted(none)] * 3)
    assert found.value == found.low == 0.0
    assert 0.01 < found.high < 0.06
    assert share(counted(none), counted(one), counted(none)).low >= 0.0
    assert share(*[counted(one)] * 3)[1:3] == pytest.approx(share(counted(one))[1:3])
    both = paired_shares([counted(none)] * 3, [counted(one)] * 3)
    assert both.low < 0 < both.high


def test_one_seed_is_the_bootstrap_and_three_equal_ones_have_no_spread() -> None:
    rng = np.random.default_rng(5)
    totals = counted(rng.normal(size=40))
    one, three = (across_seeds([totals] * n, ratio, 2000, 0) for n in (1, 3))
    assert one.value == pytest.approx(three.value)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.1)
    shifted = [{k: v + np.array([s, 0.0]) for k, v in totals.items()} for s in (-1.0, 0.0, 1.0)]
    wide = across_seeds(shifted, ratio, 500, 0)
    assert wide.value == pytest.approx(three.value)
    assert wide.high - wide.low > 4  # t with 2 degrees of freedom: 4.3 * 1 / sqrt 3 to each side


def test_holm_by_hand() -> None:
    """Three p values: the least times 3, the next times 2, the last times 1, never falling."""
    assert holm([0.03, 0.005, 0.04]) == [0.06, 0.015, 0.06]
    assert holm([None, 0.5]) == [None, 0.5]
    assert holm([]) == []


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    """For a mean the jackknife's variance is s^2 / n, here 10 values 0..9: s^2 = 9.17, n = 10."""
    values = list(range(10))
    left = [(45 - v) / 9 for v in values]
    found = jackknife(4.5, left)
    reach = 2.262157 * math.sqrt(82.5 / 9 / 10)
    assert found.high - found.value == pytest.approx(reach, rel=1e-6)
    assert jackknife(None, []) == UNDEFINED
    assert jackknife(1.0, [1.0]) == Estimate(1.0, None, None)


def test_totals_of_one_conversation_add_up() -> None:
    assert share(sum_by(["a", "a"], [(1.0, 1.0), (0.0, 1.0)])) == Estimate(0.5, None, None)


def test_bootstrap_value_is_the_statistic_of_all() -> None:
    totals = sum_by(["a", "b", "a"], [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)])
    estimate = bootstrap(totals, ratio, 500, seed=0)
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate == bootstrap(totals, ratio, 500, seed=0)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], UNDEFINED),
        ([(0.0, 0.0)], UNDEFINED),
        ([(0.0, 0.0), (0.0, 0.0)], UNDEFINED),
    ],
)
def test_degenerate_data_is_undefined(rows: list, wanted: object) -> None:
    assert bootstrap(sum_by(range(len(rows)), rows), ratio, 100, seed=0) == wanted


def test_one_conversation_has_a_value_but_no_interval() -> None:
    estimate = bootstrap(sum_by(["a"], [(3.0, 4.0)]), ratio, 100, seed=0)
    assert estimate == Estimate(0.75, None, None)


def test_all_alike_has_an_interval_of_no_width() -> None:
    estimate = bootstrap(sum_by(range(5), [(1.0, 1.0)] * 5), ratio, 100, seed=0)
    assert estimate[:3] == (1.0, 1.0, 1.0)


def test_coverage_of_the_interval() -> None:
    """95 % intervals of a mean over 60 conversations of 4 correlated rows hold the truth in 95 %
    of 400 data sets, within what 400 trials can tell: 2.6 * sqrt(.95 * .05 / 400) = .03 about it.
    """
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(400):
        shared = rng.normal(size=60)
        rows = [(shared[c] + rng.normal(), 1.0) for c in range(60) for _ in range(4)]
        keys = [c for c in range(60) for _ in range(4)]
        estimate = bootstrap(sum_by(keys, rows), ratio, 400, seed=trial)
        held += estimate.low <= 0.0 <= estimate.high
    assert 0.92 <= held / 400 <= 0.98


def test_paired_difference_is_tighter_than_its_parts() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=80)
    ours = sum_by(range(80), [(b + 0.1 + 0.01 * rng.normal(), 1.0) for b in base])
    theirs = sum_by(range(80), [(b, 1.0) for b in base])
    difference = paired(ours, theirs, ratio, 500, seed=0)
    alone = bootstrap(ours, ratio, 500, seed=0)
    assert difference.value == pytest.approx(0.1, abs=0.01)
    assert (difference.high - difference.low) < (alone.high - alone.low) / 10
    assert paired(ours, {}, ratio, 100, seed=0) == UNDEFINED


def test_statistics_by_hand() -> None:
    assert difference_of_means(np.array([6.0, 2.0, 1.0, 1.0])) == 2.0
    assert exp_ratio(np.array([math.log(4) * 3, 3.0])) == pytest.approx(4.0)
