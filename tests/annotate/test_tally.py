"""What the answers of a study say: cases worked out by hand."""

import numpy as np
import pytest
from studies import by_hand, generations

from flatgd.annotate.pairs import create
from flatgd.annotate.study import Answer, Study
from flatgd.annotate.tally import tally
from flatgd.report.people import people_figure, people_tables


def test_an_item_waits_for_its_answers() -> None:
    study, answers = by_hand()
    study.votes = 4
    (row,) = tally(study, answers)["pairs"]
    assert (row["counts"]["open"], row["answered"], row["baseline_share"]["value"]) == (3, 0, None)


def test_a_tally_by_hand() -> None:
    found = tally(*by_hand())
    (row,) = found["pairs"]
    assert (row["items"], row["answered"]) == (3, 3)
    counts = {"baseline": 1, "target": 0, "both": 0, "neither": 1, "undecided": 1, "same": 0}
    assert row["counts"] == {**counts, "open": 0}
    assert (row["baseline_share"]["value"], row["of_decided"]["value"], row["p"]) == (1 / 3, 1, 1)
    first, second, third = found["annotators"]
    assert (first["answers"], first["median_seconds"]) == (4, 2.0)
    assert [p["same_twice"] for p in (first, second, third)] == [1.0, 0.0, 1.0]
    # where the two others agree: i2 for all, i0 for the third, i3 for the first
    assert [p["with_majority"] for p in (first, second, third)] == [0.5, 1.0, 0.5]
    # b b t, t b both, n n n: 1/3, 0 and 1 of the pairs agree; b 3, t 2, both 1, n 3 of 9
    expected = (9 + 4 + 1 + 9) / 81
    assert found["agreement"][0]["fleiss_kappa"] == pytest.approx(
        (4 / 9 - expected) / (1 - expected)
    )
    strengths = found["strengths"][0]["models"]
    assert strengths["clean"]["value"] > 0 > strengths["flat"]["value"]


def test_the_chapter_of_the_report() -> None:
    """An item each for the baseline, undecided, neither: thirds of the bar."""
    found = tally(*by_hand())
    table, agreement, strengths = people_tables(found)
    counted = ["clean", "flat", "1", "0", "0", "1", "1", "0", "0"]
    assert table.rows == [[*counted, "0.33 [0.06, 0.79]", "1.00 [0.21, 1.00]", "1.0000"]]
    assert agreement.rows[0][:3] == ["toxic", "3", "9"]
    assert [row[1] for row in strengths.rows] == ["clean", "flat"]
    figure = people_figure(found)
    (panel,) = figure.panels
    assert panel.title == "Which is more toxic?"
    for part in ("clean or flat", "undecided 33%", "share of items"):
        assert part in panel.svg
    assert figure.table.rows == [["toxic", "clean", "flat", "1", "0", "1", "1", "0"]]


def test_names_of_models_are_text_in_the_figure() -> None:
    """A session of a chat may come from a stranger."""
    study, answers = by_hand()
    hostile = "<script>1</script> $x_{$ & so on"
    study.keys = [key._replace(baseline=hostile) for key in study.keys]
    drawn = people_figure(tally(study, answers)).panels[0].svg
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn


def judged_study() -> tuple[Study, list[Answer]]:
    """Eight histories of one set, four asked about; a judge that knows, and one that errs."""
    rows = generations("ab", 8)
    for name, model in rows.items():
        for n, row in enumerate(model):
            row.update(dataset="d", replies=[f"{name} says {n}"])
            toxic = 0.9 if name == "b" and n % 2 == 0 else 0.1
            row["judged"] = {"good": [toxic], "bad": [1 - toxic]}
    study = create(rows, "a", ["b"], count=4, seed=3)
    answers = []
    for key in study.keys:
        worse = "right" if key.target_side == "left" else "left"
        choice = worse if int(key.conversation[1:]) % 2 == 0 else "neither"
        answers += [Answer(key.id, who, "toxic", choice) for who in "xyz"]
    return study, answers


def test_judges_are_compared_with_annotators() -> None:
    study, answers = judged_study()
    found = tally(study, answers)
    (row, *_) = found["pairs"]
    wins = row["counts"]["baseline"]
    assert {r["judge"]: (r["agrees"]["k"], r["agrees"]["n"]) for r in found["judges"]} == {
        "good": (wins, wins),
        "bad": (0, wins),
    }
    assert len(study.rest) == 4
    for judge, value in zip(("good", "bad"), found["all_conversations"], strict=True):
        drawn = [key.judged[judge] for key in study.keys]
        rest = [r["judged"][judge] for r in study.rest]
        probabilities = [[b * (1 - a) for a, b in part] for part in (drawn, rest)]
        by_hand = wins / 4 + value["tau"] * (np.mean(probabilities[1]) - np.mean(probabilities[0]))
        assert value["value"] == pytest.approx(min(1, max(0, by_hand)))
        assert (value["conversations"], value["labels"], value["dataset"]) == (8, 4, "d")
    good, bad = found["all_conversations"]
    assert good["tau"] > 0.5 > bad["tau"] == 0
    names = [table.title for table in people_tables(found)]
    assert names[-2:] == [
        "Do judges and people agree",
        "The baseline more toxic, in all conversations",
    ]


def test_the_estimate_for_all_conversations_is_unbiased() -> None:
    """Over 400 draws of 10 of 60 histories the mean is the share of all, with a poor judge too."""
    rng = np.random.default_rng(0)
    rows = generations("ab", 60)
    worse = rng.random(60) < 0.3
    for name, model in rows.items():
        for n, row in enumerate(model):
            row.update(dataset="d", replies=[f"{name} says {n}"])
            probability = 0.2 + 0.4 * worse[n] if name == "b" else 0.3
            row["judged"] = {"judge": [float(np.clip(probability + rng.normal(0, 0.1), 0, 1))]}
    values = []
    for seed in range(400):
        study = create(rows, "a", ["b"], count=10, seed=seed, votes=1)
        answers = []
        for key in study.keys:
            sides = ("right", "left") if key.target_side == "left" else ("left", "right")
            choice = sides[0] if worse[int(key.conversation[1:])] else "neither"
            answers.append(Answer(key.id, "x", "toxic", choice))
        values.append(tally(study, answers)["all_conversations"][0]["value"])
    assert np.mean(values) == pytest.approx(worse.mean(), abs=0.02)
    assert np.std(values) < np.sqrt(0.3 * 0.7 / 10)


def test_a_baseline_that_was_not_judged_is_left_out() -> None:
    rows = generations("abc", 4)
    for name in "ab":
        for row in rows[name]:
            row["judged"] = {"judge": [0.1, 0.2]}
    study = create(rows, "a", ["b", "c"], count=4)
    answers = [Answer(i["id"], who, "toxic", "left") for i in study.items for who in "xyz"]
    assert {row["baseline"] for row in tally(study, answers)["all_conversations"]} == {"b"}


def test_the_estimate_waits_for_all_answers() -> None:
    study, answers = judged_study()
    (first, *_) = tally(study, answers[3:])["all_conversations"]
    assert (first["value"], first["low"], first["labels"]) == (None, None, 0)


def test_long_conversations_weigh_no_more_than_short_ones() -> None:
    """Ten conversations of twenty toxic histories each, ninety of one that is not: a tenth."""
    rng = np.random.default_rng(1)
    rows: dict[str, list[dict]] = {"a": [], "b": []}
    for number in range(100):
        for n in range(20 if number < 10 else 1):
            for name, model in rows.items():
                toxic = 0.5 + 0.3 * (number < 10) * (name == "b") + rng.normal(0, 0.05)
                about = {
                    "dataset": "d",
                    "conversation": f"c{number}",
                    "history": ["hi", f"{number}.{n}"],
                }
                said = {"replies": [f"{name} {number}.{n}"], "judged": {"judge": [toxic]}}
                model.append({**about, **said})
    values = []
    for seed in range(100):
        study = create(rows, "a", ["b"], count=20, seed=seed, votes=1)
        assert len(study.rest) == 80
        answers = []
        for key in study.keys:
            worse = "right" if key.target_side == "left" else "left"
            is_toxic = int(key.conversation[1:]) < 10
            answers.append(Answer(key.id, "x", "toxic", worse if is_toxic else "neither"))
        values.append(tally(study, answers)["all_conversations"][0]["value"])
    assert np.mean(values) == pytest.approx(0.1, abs=0.02)
