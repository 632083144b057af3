"""Statistics of annotators' answers: published examples, and cases worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from flatgd.annotate.statistics import (
    bradley_terry,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
    share,
    sign_test,
)

FLEISS = [  # a table as in Fleiss 1971: 14 raters, 10 subjects, 5 categories; kappa .210
    *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
    *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
]


KRIPPENDORFF = (  # three coders, fifteen units, values missing; nominal alpha .691
    "* * * * * 3 4 1 2 1 1 3 3 * 3",
    "1 * 2 1 3 3 4 3 * * * * * * *",
    "* * 2 1 3 4 4 * 2 1 1 3 3 * 4",
)


def test_published_examples() -> None:
    votes = [[c for c, count in enumerate(row) for _ in range(count)] for row in FLEISS]
    assert fleiss_kappa(votes) == pytest.approx(0.210, abs=5e-4)
    units = zip(*(row.split() for row in KRIPPENDORFF), strict=True)
    alpha = krippendorff_alpha([[v for v in unit if v != "*"] for unit in units])
    assert alpha == pytest.approx(0.691, abs=5e-4)


def test_the_paper_s_size_of_study() -> None:
    """35 of 50: Wilson's interval by its formula, the exact one by its definition."""
    found, z = share(35, 50), 1.959964
    middle, width = (35 + z**2 / 2) / (50 + z**2), z / (50 + z**2) * math.sqrt(50 * 0.21 + z**2 / 4)
    assert found.wilson == pytest.approx((middle - width, middle + width), abs=1e-6)
    assert found.exact is not None
    for p, tail in zip(found.exact, (range(35, 51), range(36)), strict=True):
        probability = sum(math.comb(50, k) * p**k * (1 - p) ** (50 - k) for k in tail)
        assert probability == pytest.approx(0.025, abs=1e-6)
    assert sign_test(9, 1) == pytest.approx(2 * 11 / 1024)


def test_degenerate_cases_are_undefined() -> None:
    assert share(0, 0)[2:] == (None, None, None)
    assert share(0, 5).wilson[0] == pytest.approx(0)
    assert sign_test(0, 0) is None
    assert (majority([]), majority(["a", "b"]), majority(["a", "b", "b"])) == (None, None, "b")
    for alike in ([], [["a"]], [["a", "a"], ["a", "a", "a"]]):
        assert fleiss_kappa(alike) is None
        assert krippendorff_alpha(alike) is None
    assert bradley_terry({}) == {}


def test_agreement_beyond_chance_is_none_where_votes_are_random() -> None:
    rng = np.random.default_rng(0)
    votes = [list(rng.integers(0, 4, 3)) for _ in range(4000)]
    assert abs(fleiss_kappa(votes)) < 0.02
    assert krippendorff_alpha(votes) == pytest.approx(fleiss_kappa(votes), abs=1e-3)
    assert fleiss_kappa([["a", "a"], ["b", "b"]]) == krippendorff_alpha([["a"] * 2, ["b"] * 2]) == 1


WINS = {("a", "b"): 5.0, ("b", "c"): 4.0, ("c", "b"): 1.0, ("a", "c"): 6.5, ("c", "a"): 0.5}


def penalised(s: Any) -> float:
    place = {"a": 0, "b": 1, "c": 2}
    games = sum(n * np.logaddexp(0, s[place[y]] - s[place[x]]) for (x, y), n in WINS.items())
    return float(games + sum(np.logaddexp(0, v) + np.logaddexp(0, -v) for v in s) / 2)


def test_strengths_are_the_maximum_of_their_likelihood() -> None:
    found = bradley_terry(WINS)
    wanted = minimize(penalised, np.zeros(3), tol=1e-12).x
    got = [found[name].value for name in "abc"]
    assert got == pytest.approx(list(wanted - wanted.mean()), abs=1e-4)
    assert sum(got) == pytest.approx(0)
    assert got[0] > got[1] > got[2]


def test_an_unbeaten_model_has_a_finite_strength() -> None:
    few, many = (bradley_terry({("a", "b"): n})["a"].value for n in (5.0, 500.0))
    assert 0 < few < many < 10
    balanced = bradley_terry({("a", "b"): 50.0, ("b", "a"): 50.0})["a"]
    assert balanced.value == pytest.approx(0)
    assert balanced.error == pytest.approx(1 / math.sqrt(100), rel=0.01)  # half of 2 / sqrt(100)
