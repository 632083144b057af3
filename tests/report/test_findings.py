"""Findings: what the numbers show as data, and the sentences that say so."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from flatgd.publish.card import _is_about
from flatgd.report.findings import (
    AboutMethod,
    MethodDifference,
    QualityKept,
    findings,
    non_inferior,
    study_findings,
)
from flatgd.report.sentences import sentence

METHODS = ("clean", "cringe", "safety_loss", "flatgd")
METRICS = ("contrast", "toxicity_any5", "toxicity_mean", "perplexity", "nll_ordinary", "div1")


def a_recipe(methods: tuple[str, ...] = METHODS, judges: int = 2) -> Any:
    """What findings read of a recipe."""
    return SimpleNamespace(
        methods={name: {} for name in methods},
        baseline="clean",
        generate=SimpleNamespace(samples=5),
        report=SimpleNamespace(non_inferiority=0.1),
        judges=[SimpleNamespace(label=f"judge{n}") for n in range(judges)],
    )


def a_summary() -> list[Any]:
    """Two test sets, the models and their differences: decided, undecided and undefined ones."""
    rows = []
    pairs = [f"{a} - clean" for a in METHODS[1:]]
    names = ["clean", *pairs, "flatgd - safety_loss", "toxic_expert - clean_expert"]
    for count, (dataset, method, metric) in enumerate(
        itertools.product(("bad", "prosocial"), names, METRICS)
    ):
        value = ((count * 7919) % 200 - 100) / 500
        half = ((count * 104729) % 100) / 600
        is_defined = count % 11 != 5
        rows.append(
            {
                "method": method,
                "dataset": dataset,
                "metric": metric,
                "value": value,
                "low": value - half if is_defined else None,
                "high": value + half if is_defined else None,
                "p": None,
                "p_holm": (0.01, 0.2, None)[count % 3],
                "n": 50,
                "excluded": 0,
            }
        )
    return rows


def a_judge(**changed: Any) -> Any:
    part = {
        "rows_of": "bad, all rows",
        "rows": 80,
        "toxic": 30,
        "auc": [0.812, 0.75, 0.86],
        "f1": [0.5, 0.4, 0.6],
        "false_positive_rate": [0.021, 0.01, 0.04],
        "true_positive_rate": [0.343, 0.25, 0.45],
        "found": [0.35, 0.2, 0.5],
        "calibration_error": 0.05,
        "brier": 0.15,
    }
    judge = {
        "name": "judge0",
        "about": "linear, trained on 900 labelled replies",
        "threshold": 0.62,
        "f1_threshold": 0.4,
        "false_positive_rate": 0.02,
        "safe": 500,
        "toxic": 12,
        "few_labels": True,
        "is_flat": True,
        "cut": {"inputs": 1200, "histories": 34, "replies": 2},
        "quality": [part, {**part, "rows_of": "bad, bot replies, no canned ones"}],
        "reliability": [],
    }
    return judge | changed


def test_a_judge_that_can_hardly_tell_is_named_where_it_is_first_used() -> None:
    weak = a_judge(few_labels=False, is_flat=False)
    for part in weak["quality"]:
        part["true_positive_rate"] = [0.07, 0.0, 0.2]
    said = [sentence(one) for one in findings(a_summary(), a_recipe(judges=1), [weak])]
    named = [text for text in said if "can hardly tell: it shows 5% of a difference" in text]
    assert len(named) == 1
    assert named[0].startswith("cringe − clean, toxicity_any5")
    strong = [sentence(one) for one in findings(a_summary(), a_recipe(judges=1), [a_judge()])]
    assert not any("can hardly tell" in text for text in strong)


def test_every_judge_has_its_floor_and_its_power() -> None:
    judges = [a_judge(name=name) for name in ("one", "two", "three")]
    said = [sentence(one) for one in findings(a_summary(), a_recipe(judges=3), judges)]
    for name in ("one", "two", "three"):
        assert sum(f"The judge {name} is set to flag" in text for text in said) == 1
        assert sum(f"The judge {name} tells toxic from safe" in text for text in said) == 1


def studies() -> tuple[Any, Any, Any]:
    points = [
        {
            "method": method,
            "at": "matched",
            "safety_loss": 0.4321,
            "relative_flatness": [flatness, 0.01],
            "grad_norm": 0.0123 * flatness,
        }
        for method, flatness in (("flatgd", 1.25), ("safety_loss", 2.5))
    ]
    lost = [
        {"method": "flatgd", "at": "matched", "attack": "benign", "kept": 0.9, "half_lost": 12.4},
        {"method": "safety_loss", "at": "matched", "attack": "benign", "kept": 0.8},
        {"method": "flatgd", "at": "matched", "attack": "toxic", "kept": None},
        {"method": "safety_loss", "at": "matched", "attack": "toxic", "kept": 0.1},
    ]
    gap = {"method": "flatgd - safety_loss", "metric": "contrast", "dataset": "bad"}
    gaps = [
        {**gap, "question": "left_out", "value": 0.2, "low": 0.1, "high": 0.3},
        {**gap, "question": "missing_negatives", "value": 0.2, "low": -0.1, "high": 0.5},
        {**gap, "question": "left_out", "value": None, "low": None, "high": None},
        {**gap, "metric": "toxicity_mean", "question": "left_out", "value": 0.2},
    ]
    full = [{"half_lost": None, **row} for row in lost]
    return {"points": points}, {"lost": full, "steps": 40}, {"rows": gaps}


SENTENCES = [
    (
        "bad: the experts do not differ, toxic − clean in contrast +0.140 [+0.023, +0.257]. "
        "There is nothing to steer by; train them longer or on more labelled replies."
    ),
    "prosocial: the experts differ, toxic − clean in contrast -0.092 [-0.115, -0.069].",
    (
        "cringe − clean, contrast: bad +0.028 [-0.095, +0.151] (undecided), prosocial +0.196 "
        "[+0.166, +0.226]."
    ),
    (
        "cringe − clean, toxicity_any5: bad -0.134 [-0.139, -0.129] (undecided), prosocial "
        "+0.034 [-0.044, +0.112] (undecided)."
    ),
    (
        "cringe − clean, toxicity_mean: bad +0.104 [+0.051, +0.157] (undecided), prosocial "
        "-0.128 [-0.255, -0.001] (undecided)."
    ),
    (
        "safety_loss − clean, contrast: bad -0.144 [-0.224, -0.064], prosocial +0.024 [-0.129, "
        "+0.177] (undecided)."
    ),
    "safety_loss − clean, toxicity_any5: bad +0.094 [-0.034, +0.222] (undecided).",
    (
        "safety_loss − clean, toxicity_mean: bad -0.068 [-0.078, -0.058] (undecided), prosocial"
        " +0.100 [+0.017, +0.183] (undecided)."
    ),
    ("flatgd − clean, contrast: bad +0.084 [+0.047, +0.121], prosocial -0.148 [-0.258, -0.038]."),
    (
        "flatgd − clean, toxicity_any5: bad -0.078 [-0.163, +0.007] (undecided), prosocial "
        "+0.090 [-0.068, +0.248] (undecided)."
    ),
    (
        "flatgd − clean, toxicity_mean: bad +0.160 [+0.027, +0.293] (undecided), prosocial "
        "-0.072 [-0.112, -0.032] (undecided)."
    ),
    "flatgd − safety_loss, contrast: bad -0.088 [-0.248, +0.072] (undecided).",
    (
        "flatgd − safety_loss, toxicity_any5: bad +0.150 [+0.108, +0.192] (undecided), "
        "prosocial -0.082 [-0.197, +0.033] (undecided)."
    ),
    (
        "flatgd − safety_loss, toxicity_mean: bad -0.012 [-0.102, +0.078] (undecided), "
        "prosocial +0.156 [-0.007, +0.319] (undecided)."
    ),
    (
        "cringe, within 10% of clean's quality: kept: nll_ordinary on prosocial, div1; lost: "
        "perplexity on prosocial, nll_ordinary on bad; undecided: perplexity on bad."
    ),
    (
        "safety_loss, within 10% of clean's quality: lost: perplexity on bad, nll_ordinary; "
        "undecided: perplexity on prosocial, div1."
    ),
    (
        "flatgd, within 10% of clean's quality: kept: nll_ordinary on bad; lost: perplexity on "
        "prosocial, div1 on prosocial; undecided: perplexity on bad, nll_ordinary on prosocial,"
        " div1 on bad."
    ),
    (
        "The judge judge0 is set to flag 2.0% of the safe replies that people labelled. On "
        "replies like those, a model without toxic replies has up to 0.096 on any of 5."
    ),
    (
        "The judge judge0 tells toxic from safe with AUC 0.81 (bad, bot replies, no canned "
        "ones). It flags 34.3% of the toxic and 2.1% of the safe ones, so a true difference "
        "shows at 32% of its size."
    ),
    (
        "The judge judge0 does not tell toxic from safe on the replies it was calibrated on. "
        "Its P(toxic) is nearly the same for every reply, so figures by it say nothing."
    ),
    (
        "The judge judge0 reads no more than fits: of 1,200 labelled replies, 34 lost older "
        "history and 2 lost their beginning."
    ),
    (
        "The judge judge0 learned from few labels: 500 safe, 12 toxic. Its figures may be "
        "chance. Label more, or name a ready classifier (kind: hf)."
    ),
    (
        "The judge is set to flag 2.0% of the safe replies that people labelled. On replies "
        "like those, a model without toxic replies has up to 0.096 on any of 5."
    ),
    (
        "It tells toxic from safe with AUC 0.81 (bad, bot replies, no canned ones). It flags "
        "34.3% of the toxic and 2.1% of the safe ones, so a true difference shows at 32% of its"
        " size."
    ),
    (
        "The judge judge0 is set to flag 2.0% of the safe replies that people labelled. On "
        "replies like those, a model without toxic replies has up to 0.096 on any of 5."
    ),
    (
        "The judge judge0 does not tell toxic from safe on the replies it was calibrated on. "
        "Its P(toxic) is nearly the same for every reply, so figures by it say nothing."
    ),
    (
        "The judge judge0 reads no more than fits: of 1,200 labelled replies, 34 lost older "
        "history and 2 lost their beginning."
    ),
    (
        "The judge judge0 learned from few labels: 500 safe, 12 toxic. Its figures may be "
        "chance. Label more, or name a ready classifier (kind: hf)."
    ),
    (
        "At the same L_S of 0.4321 flatgd's relative flatness is 1.25 ± 0.01, safety_loss's 2.5"
        " ± 0.01: lower; ‖grad L_S‖ 0.0154 and 0.0307."
    ),
    (
        "Until half of the gain in contrast is lost to benign tuning, from the same L_S: flatgd"
        " 12 steps, safety_loss kept 80%."
    ),
    (
        "Until half of the gain in contrast is lost to toxic tuning, from the same L_S: flatgd "
        "no gain, safety_loss kept 10%."
    ),
    (
        "bad left out: flatgd's change in contrast − safety_loss's 0.200 [0.100, 0.300]; above "
        "0, it generalises better."
    ),
    (
        "bad toxic replies missing: flatgd's change in contrast − safety_loss's 0.200 [-0.100, "
        "0.500] (undecided); above 0, it generalises better."
    ),
    (
        "bad left out: flatgd's change in contrast − safety_loss's undefined (undecided); above"
        " 0, it generalises better."
    ),
]


def test_sentences_are_word_for_word_the_same() -> None:
    summary, calm = a_summary(), {"inputs": 1, "histories": 0, "replies": 0}
    found = [
        *findings(summary, a_recipe(), [a_judge()]),
        *findings([], a_recipe(judges=1), [a_judge(few_labels=False, is_flat=False, cut=calm)]),
        *findings(summary[:3], a_recipe(), [a_judge(quality=[])]),
        *study_findings(*studies()),
        *study_findings(None, None, None),
    ]
    assert [sentence(finding) for finding in found] == SENTENCES


def test_findings_are_data() -> None:
    found = findings(a_summary(), a_recipe(), [a_judge()])
    contrast = next(f for f in found if isinstance(f, MethodDifference) and f.method == "flatgd")
    assert (contrast.base, contrast.metric) == ("clean", "contrast")
    assert [d.dataset for d in contrast.differences if d.is_decided] == ["bad", "prosocial"]
    assert contrast.differences[0].value == pytest.approx(0.084)
    quality = next(f for f in found if isinstance(f, QualityKept) and f.method == "cringe")
    assert quality.margin == 0.1
    assert ("perplexity", "prosocial", "lost") in quality.verdicts


def test_a_card_tells_of_its_method_and_the_judge_alone() -> None:
    """A method whose name begins another's is not taken for it."""
    found = findings(a_summary(), a_recipe(), [a_judge()])
    own = [f for f in found if _is_about(f, "flatgd")]
    assert {f.method for f in own if isinstance(f, AboutMethod)} == {"flatgd"}
    assert len(own) == 12  # metrics to two bases, quality, five of the judge
    assert not [f for f in found if _is_about(f, "flat") and isinstance(f, AboutMethod)]


@pytest.mark.parametrize(
    ("low", "high", "is_lower_better", "wanted"),
    [
        (-0.02, 0.05, False, "kept"),
        (-0.2, -0.15, False, "lost"),
        (-0.2, 0.05, False, "undecided"),
        (-0.05, 0.02, True, "kept"),
        (0.15, 0.2, True, "lost"),
    ],
)
def test_non_inferiority(low: float, high: float, is_lower_better: bool, wanted: str) -> None:
    assert non_inferior(low, high, 0.1, is_lower_better) == wanted
