"""Metrics and their summary: by hand, over seeds; the paper's trade-off factor."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatgd.data.behaviour import KINDS
from flatgd.evaluation.metrics import any_of, columns, ks
from flatgd.evaluation.summary import Settings, diversity_rows, gaps, summarise
from flatgd.evaluation.trade_off import over_metrics, pareto_front, softmax, standardised, trade_off
from flatgd.report.paper import FACTORS, TOXICITY

COLUMN_SUMS = {
    name: [sum(column) for column in zip(*rows.values(), strict=True)]
    for name, rows in FACTORS.items()
}
SETTINGS = Settings(2, {"one": 0.6, "other": 0.85}, 100, 0, "clean")


def generated(
    talk: str, toxic: list[float], nll: list[float], words: list[int] | None = None
) -> dict:
    return {
        "kind": "generated",
        "dataset": "d",
        "conversation": talk,
        "toxic": {"one": toxic, "other": [1 - chance for chance in toxic]},
        "words": words or [2] * len(toxic),
        "div1": 0.5,
        "div2": None,
        **{kind: [1, 0] for kind in KINDS},
        "nll": nll,
        "tokens": [2] * len(nll),
        "relevance": [0.3, 0.1],
    }


def labelled(talk: str, context: str, is_safe: bool | None, nll: float, tokens: int = 2) -> dict:
    return {
        "kind": "ordinary" if is_safe is None else "labelled",
        "dataset": "d",
        "conversation": talk,
        "context": context,
        "is_safe": is_safe,
        "nll": nll,
        "tokens": tokens,
    }


def test_summary_by_hand() -> None:
    """Two histories of two replies. With the mark at .6 one of two histories has a toxic reply, and
    one reply drawn of each is toxic in 1 of 2 * 1 / 2 = .25; at .5 both. Mean P: (.1 + .7 + .2 +
    .55) / 4. Perplexities: e^(2/2), e^(4/2), e^1, e^1 and the corpus exp(10 / 8). Contrast: toxic
    (3 + 1) / 2 = 2 less safe (1 + 0) / 2 = .5; paired, in the one context with both, 3 - 1 = 2.
    NLL of ordinary replies: 3 nats over 2 tokens. div2 is undefined for both, so it has no row.
    """
    ours = [
        generated("a", [0.1, 0.7], [2.0, 4.0]),
        generated("b", [0.2, 0.55], [2.0, 2.0]),
        labelled("a", "x", False, 6.0),
        labelled("a", "x", True, 2.0),
        labelled("b", "y", False, 2.0),
        labelled("c", "z", True, 0.0),
        labelled("c", "w", True, 5.0, tokens=0),
        labelled("o", "v", None, 3.0),
    ]
    base = [
        generated("a", [0.1, 0.1], [2.0, 2.0]),
        generated("b", [0.2, 0.1], [2.0, 2.0]),
    ]
    rows = summarise([{"m": ours, "clean": base}], SETTINGS)
    cells = {(r["method"], r["metric"]): r for r in rows}
    assert cells["m", "toxicity_any2"]["value"] == 0.5
    assert cells["m", "toxicity_any1"]["value"] == 0.25
    assert cells["m", "toxicity_any2_p50"]["value"] == 1.0
    assert cells["m", "toxicity_mean"]["value"] == pytest.approx(1.55 / 4)
    assert cells["m", "toxicity_matched"]["value"] == pytest.approx(1.55 / 4)  # all of one length
    assert cells["m", "toxicity_mean@other"]["value"] == pytest.approx(1 - 1.55 / 4)
    assert cells["m", "toxicity_any2@other"]["value"] == 0.5  # .9 and .3, .8 and .45
    assert cells["m", "toxicity_max"]["value"] == pytest.approx(1.25 / 2)
    assert cells["m", "question"]["value"] == 0.5
    assert cells["m", "relevance"]["value"] == pytest.approx(0.2)
    assert cells["m", "nll_ordinary"]["value"] == pytest.approx(1.5)
    wanted = (math.exp(1) * 3 + math.exp(2)) / 4
    assert cells["m", "perplexity"]["value"] == pytest.approx(wanted)
    assert cells["m", "perplexity_corpus"]["value"] == pytest.approx(math.exp(10 / 8))
    assert cells["m", "div1"]["value"] == 0.5
    assert ("m", "div2") not in cells
    assert cells["m", "contrast"]["value"] == pytest.approx(1.5)
    assert cells["m", "contrast"]["excluded"] == 1
    assert cells["m", "contrast_paired"]["value"] == pytest.approx(2.0)
    assert cells["m", "contrast_paired"]["n"] == 1
    assert cells["m - clean", "toxicity_any2"]["value"] == 0.5
    assert ("clean - clean", "toxicity_any2") not in cells
    assert ("m - clean", "contrast") not in cells
    numbers = [row[key] for row in rows for key in ("value", "low", "high", "p", "p_holm")]
    assert all(v is None or math.isfinite(v) for v in numbers)


@given(st.integers(0, 6), st.integers(1, 6))
def test_any_of_k_is_the_mean_over_all_choices(marked: int, k: int) -> None:
    replies = [True] * marked + [False] * (6 - marked)
    choices = list(itertools.combinations(replies, k))
    assert any_of(marked, 6, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_which_k_are_shown() -> None:
    assert ks(1) == [1]
    assert ks(25) == [1, 2, 3, 5, 10, 25]


def test_toxicity_at_matched_length_undoes_a_difference_in_length() -> None:
    """Both models say toxic things as often at each length, .1 in short and .5 in long replies;
    one is short three times in four, the other long. Their means differ by .2, matched by 0."""
    parts = {}
    for name, short in (("brief", 3), ("wordy", 1)):
        words = [5] * short + [20] * (4 - short)
        rows = [
            generated(f"c{n}", [0.1 if w == 5 else 0.5 for w in words], [], words) for n in range(9)
        ]
        parts[name] = rows
    rows = summarise([parts], Settings(4, {"one": 0.6}, 100, 0, "brief"))
    cells = {(r["method"], r["metric"]): r["value"] for r in rows}
    assert cells["wordy - brief", "toxicity_mean"] == pytest.approx(0.2)
    assert cells["wordy - brief", "toxicity_matched"] == pytest.approx(0.0)
    assert cells["brief", "toxicity_matched"] == pytest.approx(0.3)


def test_a_length_that_a_model_never_uses_is_undefined() -> None:
    table = columns(1, {"one": 0.5}, [1.0, 1.0, 9.0, 9.0])
    column = table["toxicity_matched"]
    row = {"toxic": {"one": [0.3]}, "words": [1]}
    assert not np.isfinite(column.statistic(np.array(column.vector(row))))


def test_three_judges_vote() -> None:
    """Of three replies two judges mark the first, one the second, all the third."""
    said = {"one": [0.9, 0.1, 0.9], "two": [0.4, 0.1, 0.6], "three": [0.2, 0.8, 0.8]}
    row = {"toxic": said, "words": [1, 1, 1]}
    table = columns(3, {"one": 0.5, "two": 0.3, "three": 0.5}, [1.0])
    assert table["toxicity_mean@majority"].vector(row) == (2.0, 3.0)
    assert table["toxicity_any1@majority"].vector(row) == pytest.approx((2 / 3, 1.0))
    assert table["toxicity_any3@majority"].vector(row) == (1.0, 1.0)
    two = columns(3, {"one": 0.5, "two": 0.3}, [1.0])
    assert not any(name.endswith("@majority") for name in two)


def test_seeds_are_averaged_and_widen_the_interval() -> None:
    rng = random.Random(0)

    def scores(shift: float) -> dict:
        rows = {
            name: [
                generated(f"c{n}", [min(1.0, max(0.0, rng.random() * 0.2 + level))] * 2, [2.0, 2.0])
                for n in range(40)
            ]
            for name, level in (("m", 0.3 + shift), ("clean", 0.5))
        }
        return rows

    seeds = [scores(shift) for shift in (-0.2, 0.0, 0.2)]
    many = {(r["method"], r["metric"]): r for r in summarise(seeds, SETTINGS)}
    one = {(r["method"], r["metric"]): r for r in summarise(seeds[1:2], SETTINGS)}
    key = ("m - clean", "toxicity_mean")
    assert many[key]["value"] == pytest.approx(-0.2, abs=0.03)
    assert many[key]["high"] - many[key]["low"] > 5 * (one[key]["high"] - one[key]["low"])
    assert one[key]["p_holm"] < 0.05 < many[key]["p_holm"]


def test_holms_family_is_a_metric_and_a_base() -> None:
    rows = [generated(f"c{n}", [0.1 * (n % 3), 0.5], [2.0, 2.0]) for n in range(12)]
    worse = [generated(f"c{n}", [0.1 * (n % 3), 0.6 + 0.01 * (n % 5)], []) for n in range(12)]
    found = summarise([{"a": worse, "b": rows, "clean": rows, "backbone": worse}], SETTINGS)
    against = [
        r for r in found if r["metric"] == "toxicity_mean" and r["method"].endswith("- clean")
    ]
    assert len(against) == 2
    for row in against:
        assert row["p_holm"] >= row["p"]
    assert next(r for r in against if r["method"] == "b - clean")["p"] == 1.0


def test_gaps_by_hand() -> None:
    """Contrast 2 seen and 1.5 unseen for flatgd, 2 and 1 for safety_loss: gaps -.5 and -1, their
    difference .5."""

    def rows(contrast: float) -> list[dict]:
        return [
            row
            for n in range(6)
            for row in (
                labelled(f"c{n}", "x", False, 2 * contrast),
                labelled(f"c{n}", "x", True, 0.0),
            )
        ]

    seen = {"flatgd": rows(2.0), "safety_loss": rows(2.0)}
    unseen = {"flatgd": rows(1.5), "safety_loss": rows(1.0)}
    found = {r["method"]: r for r in gaps(seen, unseen, SETTINGS)}
    assert found["flatgd"]["value"] == pytest.approx(-0.5)
    assert found["safety_loss"]["unseen"] == pytest.approx(1.0)
    assert found["flatgd - safety_loss"]["value"] == pytest.approx(0.5)


def test_corpus_diversity_by_hand() -> None:
    """Replies 'a b' and 'a c' of one talk, 'a b' of another: 3 words of 6 tokens, 2 pairs of 6."""
    rows = [
        {"dataset": "d", "conversation": talk, "replies": replies}
        for talk, replies in (("x", ["a b", "a c"]), ("y", ["a b"]))
    ]
    found = {r["metric"]: r for r in diversity_rows({"m": rows})}
    assert found["div1_corpus"]["value"] == pytest.approx(3 / 6)
    assert found["div2_corpus"]["value"] == pytest.approx(2 / 6)
    assert found["ead"]["value"] == pytest.approx(3 / (3 * (1 - (2 / 3) ** 6)), abs=1e-6)


# The paper's trade-off factor


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_factors_add_up_to_one_whatever_the_weight(toxicity: list[float], weight: float) -> None:
    lack = [1 - t for t in toxicity]
    assert trade_off(toxicity, lack, weight).sum() == pytest.approx(1.0)
    assert softmax(toxicity).sum() == pytest.approx(1.0)


def test_trade_off_by_hand() -> None:
    """Two models, toxicity 0 and ln 3: shares 1/4 and 3/4; lack ln 3 and 0 the other way about. At
    w = .5 both have 1/2, at w = 1 the first 1/4."""
    toxicity, lack = [0.0, math.log(3)], [math.log(3), 0.0]
    assert trade_off(toxicity, lack, 0.5) == pytest.approx([0.5, 0.5])
    assert trade_off(toxicity, lack, 1.0) == pytest.approx([0.25, 0.75])
    assert standardised([1.0, 3.0]).tolist() == [-1.0, 1.0]
    assert standardised([2.0, 2.0]).tolist() == [0.0, 0.0]


def test_the_papers_tables_are_no_softmax_over_the_models() -> None:
    """First reading of Eq. 5: the sum is over the compared models, so whatever w and whatever was
    put in, each column of Tables 2 and 3 adds up to 1. None does, by far more than rounding."""
    rounding = 5 * 0.00005
    for sums in COLUMN_SUMS.values():
        for total in sums:
            assert abs(total - 1.0) > 100 * rounding


def test_the_papers_tables_are_no_softmax_over_the_metrics() -> None:
    """Second reading: the sum is over a model's own two metrics. Toxicity and 1 - Div (or Div) lie
    in 0..1, so each share is at least 1 / (1 + e) = .269 and so is tau, a mean of two shares: five
    models add up to 1.344 at least. All printed columns are below that, of which at most one, that
    of perplexity, is not of Div."""
    least = 1 / (1 + math.e)
    rng = random.Random(0)
    for _ in range(2000):
        tau = over_metrics(rng.random(), rng.random(), rng.random())
        assert least - 1e-12 <= tau <= 1 - least + 1e-12
    for sums in COLUMN_SUMS.values():
        assert len([total for total in sums if total < 5 * least]) == 3


def test_nor_raw_toxicity_beside_a_softmax() -> None:
    """What is left: toxicity as it is, quality by softmax: columns add up to w * (sum of Table 1) +
    1 - w. For each column that gives a w; all lie outside 0..1."""
    for place, name in enumerate(("BAD", "ProsocialDialog")):
        total = sum(values[place] for values in TOXICITY.values())
        weights = [(1 - column) / (1 - total) for column in COLUMN_SUMS[name]]
        assert not any(0 <= w <= 1 for w in weights)


def test_pareto_front() -> None:
    assert pareto_front([1.0, 1.0], [2.0, 2.0]) == [0, 1]
    assert pareto_front([0.1, 0.1, 0.2], [2.0, 1.0, 1.0]) == [1]
