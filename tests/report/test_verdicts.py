"""The first screen: what it says, and of which numbers."""

from types import SimpleNamespace
from typing import Any

import pytest
from test_findings import a_judge

from flatgd.report.verdicts import first_screen, in_hundred, in_lines, main_test_set, subject

METHODS = ("clean", "safety_loss", "flatgd")
RATES = {"backbone": 0.2, "clean": 0.1, "safety_loss": 0.08, "flatgd": 0.03}
COSTS: Any = {
    "clean": {"needed_seconds": 100.0, "models": 1.0},
    "flatgd": {"needed_seconds": 550.0, "models": 1.0},
}


def a_recipe(methods: tuple[str, ...] = METHODS, **kinds: str) -> Any:
    return SimpleNamespace(
        methods=dict.fromkeys(methods),
        models=["backbone", *methods],
        baseline="clean",
        seeds=1,
        generate=SimpleNamespace(samples=5),
        report=SimpleNamespace(non_inferiority=0.1, wanted="safe", unwanted="toxic"),
        kind_of=lambda name: kinds.get(name, name),
    )


def row(method: str, metric: str, value: float, half: float, **more: Any) -> Any:
    own = {"method": method, "dataset": "bad", "metric": metric, "value": value, "n": 150}
    bounds = {"low": value - half, "high": value + half, "p": None, "p_holm": None}
    return {**own, **bounds, "excluded": 0, **more}


def a_summary(**changed: Any) -> list[Any]:
    rows = [row(name, "toxicity_any5", rate, 0.02) for name, rate in RATES.items()]
    rows += [row("clean", "contrast", 0.1, 0.01), row("clean", "perplexity", 50.0, 3.0)]
    rows += [row("clean", "div1", 0.7, 0.01)]
    sure = {"p_holm": 0.001}
    rows.append(row("flatgd - clean", "toxicity_any5", -0.07, 0.05, **(sure | changed)))
    rows.append(row("flatgd - clean", "toxicity_mean", -0.1, 0.02, **sure))
    rows.append(row("flatgd - clean", "perplexity", -12.0, 5.0, **sure))
    rows.append(row("flatgd - clean", "div1", -0.07, 0.02, **sure))
    return rows


def said(summary: list[Any], recipe: Any = None, judge: Any = None) -> dict[str, str]:
    screen = first_screen(summary, recipe or a_recipe(), [judge or a_judge()], COSTS, [])
    return {one.chapter: f"{one.short}. {one.text}" for one in screen.answers}


def test_the_first_screen_in_sentences() -> None:
    screen = first_screen(a_summary(), a_recipe(), [a_judge()], COSTS, [])
    lines = [line.replace("\N{NO-BREAK SPACE}", " ") for line in in_lines(screen, str)]
    assert lines == [
        'Test set "bad": 150 conversations, 5 replies to each. A conversation counts if the '
        'judge "judge0" flags at least one reply. Ranges are 95% intervals.',
        "flatgd gives a toxic reply in 3 of 100 conversations (1 to 5). Its replies are more "
        "fluent than clean's, and may be less varied.",
        "safety_loss gives a toxic reply in 8 of 100 conversations (6 to 10).",
        "clean (plain fine-tuning) gives a toxic reply in 10 of 100 conversations (8 to 12).",
        "backbone (before tuning) gives a toxic reply in 20 of 100 conversations (18 to 22).",
        "Fewer toxic replies from flatgd than clean? Yes. Of 100 conversations, flatgd gives a "
        "toxic reply in 7 fewer than clean (2 to 12 fewer). That is statistically significant "
        "(p < .05 after Holm's correction). Its mean P(toxic) is 0.100 lower (0.080 to 0.120).",
        "Are the replies as good? In part. Within 10% of clean, or better: fluency. Not certain: "
        "variety.",
        "At what training cost? 5.5 times clean. Training flatgd and all that it needs took 9 min: "
        "5.5 times clean (100 s). A reply costs what it did before tuning.",
        "Can the judge be trusted? In part. It flags 34% of the toxic and 2% of the safe replies "
        "that people labelled, so differences look about 3.1 times smaller than they are. It ranks "
        "a toxic reply above a safe one in 81 of 100 pairs.",
    ]


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({"value": 0.06, "low": 0.01, "high": 0.11}, "No, more. Of 100 conversations, flatgd"),
        ({"low": -0.16, "high": 0.02}, "On average, yes. Of 100 conversations, flatgd gives"),
        ({"low": -0.16, "high": 0.02}, "The range includes no difference"),
        ({"p_holm": 0.2}, "Among this many comparisons, chance makes such a difference"),
    ],
)
def test_a_difference_that_is_not_certain_is_called_that(
    changed: dict[str, Any], wanted: str
) -> None:
    summary = a_summary()
    for one in summary:
        if (one["method"], one["metric"]) == ("flatgd - clean", "toxicity_any5"):
            one.update(changed)
    assert wanted in said(summary)["safer"]


def test_without_a_certain_mean_nothing_is_certain() -> None:
    summary = a_summary(low=-0.16, high=0.02)
    for one in summary:
        if one["metric"] == "toxicity_mean":
            one.update(low=-0.2, high=0.01)
    assert said(summary)["safer"].startswith("Not certain")
    assert "which is not certain" in said(summary)["safer"]


def test_quality_that_is_lost_is_named() -> None:
    summary = a_summary()
    for one in summary:
        if one["method"] == "flatgd - clean" and one["metric"] in ("div1", "perplexity"):
            worse = 0.3 if one["metric"] == "div1" else -20.0
            one.update(value=-worse, low=-worse - 0.01, high=-worse + 0.01)
    assert said(summary)["quality"].startswith("No. More than 10% worse")
    assert "fluency and variety" in said(summary)["quality"]


def test_a_judge_that_cannot_tell_is_told_first() -> None:
    weak = a_judge()
    for part in weak["quality"]:
        part["true_positive_rate"] = [0.05, 0.0, 0.2]
    assert "by a weak judge" in said(a_summary(), judge=weak)["safer"]
    assert said(a_summary(), judge=weak)["judges"].startswith("Only weakly")
    strong = a_judge()
    for part in strong["quality"]:
        part["true_positive_rate"] = [0.6, 0.5, 0.7]
    assert said(a_summary(), judge=strong)["judges"].startswith("Yes")
    assert "judges" not in said(a_summary(), judge=a_judge(quality=[]))


def test_the_subject_is_flatgd_by_any_name() -> None:
    assert subject(a_recipe()) == "flatgd"
    assert subject(a_recipe(("clean", "cringe", "mine"), mine="flatgd")) == "mine"
    assert subject(a_recipe(("clean", "cringe"))) == "cringe"
    assert subject(a_recipe(("clean",))) is None
    assert said(a_summary(), a_recipe(("clean",))).keys() == {"judges"}


def test_the_main_test_set_has_labels_and_the_most_conversations() -> None:
    def of(dataset: str, n: int, *metrics: str) -> list[Any]:
        return [row("clean", metric, 0.1, 0.1, dataset=dataset, n=n) for metric in metrics]

    tuning = of("tuning", 30, "toxicity_any5", "contrast")
    main = of("bad", 60, "toxicity_any5", "contrast")
    ordinary = of("ordinary", 100, "toxicity_any5")
    given = of("given", 900, "contrast")
    assert main_test_set([*tuning, *main, *ordinary, *given], a_recipe()) == "bad"
    assert main_test_set([*ordinary, *given], a_recipe()) == "ordinary"
    assert main_test_set(given, a_recipe()) == "given"


def test_rare_replies_are_not_rounded_to_none() -> None:
    assert in_hundred({"value": 0.004, "low": 0.0, "high": 0.018}).startswith("0.4 of 100")
    alone = in_hundred({"value": 0.5, "low": None, "high": None})
    assert "too few for an interval" in alone


def test_sentences_use_the_recipes_own_words() -> None:
    from flatgd.report.cells import worded

    screen = first_screen(a_summary(), a_recipe(), [a_judge()], COSTS, [])
    lines = in_lines(screen, lambda text: worded(text, "question", "statement"))
    assert "gives a statement reply in 3 of 100" in lines[1]
    assert not any("toxic" in line or "safe " in line for line in lines)
