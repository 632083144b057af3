"""Pairs for people to compare, and what their answers say: published examples, cases by hand."""

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.optimize import minimize
from studies import generations
from typer.testing import CliRunner

from flatgd.annotate import label_studio, mturk
from flatgd.annotate.pairs import create
from flatgd.annotate.raters import (
    bradley_terry,
    fleiss_kappa,
    krippendorff_alpha,
    majority,
    share,
    sign_test,
)
from flatgd.annotate.study import Answer, Key, Study, field_of, load_answers, load_study
from flatgd.annotate.tally import tally
from flatgd.cli.main import app
from flatgd.errors import DataError, FlatGDError, RecipeError
from flatgd.report.figures import styled
from flatgd.report.people import draw_people, people_tables

FLEISS = [  # Fleiss 1971's kind of table: 14 raters, 10 subjects, 5 categories; kappa .210
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
        chance = sum(math.comb(50, k) * p**k * (1 - p) ** (50 - k) for k in tail)
        assert chance == pytest.approx(0.025, abs=1e-6)
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


# A study


def test_pairs_are_balanced_stratified_and_seeded() -> None:
    study = create(generations(), "a", ["b", "c"], count=10, seed=1)
    assert study == create(generations(), "a", ["b", "c"], count=10, seed=1)
    assert study != create(generations(), "a", ["b", "c"], count=10, seed=2)
    for baseline in "bc":
        keys = [key for key in study.keys if key.baseline == baseline]
        assert Counter(key.target_side for key in keys) == {"left": 5, "right": 5}
        assert Counter(key.dataset for key in keys) == {"big": 5, "small": 5}
    one, other = ({k.conversation for k in study.keys if k.baseline == b} for b in "bc")
    assert one == other
    shown = {item["id"]: item for item in study.items}
    for key in study.keys:
        if not key.same:
            for side in ("left", "right"):
                assert shown[key.id][side].split()[0] in (key.model(side), "yes", "the")
    assert not {"a", "b", "c", "target", "baseline"} & {w for i in study.items for w in i}


def test_all_histories_where_there_are_few() -> None:
    assert len(create(generations(rows=4), "a", ["b"], count=50).keys) == 4


def test_the_same_reply_is_not_asked_about(tmp_path: Path) -> None:
    same = generations("ab")
    same["b"] = [dict(row) for row in same["a"]]
    for row in (*same["a"], *same["b"]):
        row["replies"] = ["just  this", "just this"]
    study = create(same, "a", ["b"], count=6)
    assert study.items == []
    (row, *_) = tally(study, [])["pairs"]
    assert (row["counts"]["same"], row["answered"], row["p"]) == (6, 0, None)
    with pytest.raises(RecipeError, match="nothing to ask"):
        study.save(tmp_path / "study")


def test_other_histories_are_refused() -> None:
    other = generations("ab")
    other["b"] = other["b"][::-1]
    for rows in (other["b"], other["a"][:5], []):
        with pytest.raises(RecipeError, match="a and b answered other histories"):
            create({"a": other["a"], "b": rows}, "a", ["b"])


def test_one_history_of_each_conversation() -> None:
    talks = generations("ab", rows=12)
    for rows in talks.values():
        for n, row in enumerate(rows):
            row["conversation"] = f"c{n // 4}"
            row["dataset"] = "d"
    study = create(talks, "a", ["b", "b"], count=50)
    assert sorted(key.conversation for key in study.keys) == ["c0", "c1", "c2"]


def test_an_item_waits_for_its_answers() -> None:
    study, answers = by_hand()
    study.votes = 4
    (row,) = tally(study, answers)["pairs"]
    assert (row["counts"]["open"], row["answered"], row["baseline_share"]["value"]) == (3, 0, None)


def by_hand() -> tuple[Study, list[Answer]]:
    """Four items, target always left; three people on one question."""
    items = [{"id": f"i{n}", "history": ["hi"], "left": "x", "right": "y"} for n in range(4)]
    keys = [
        Key(f"i{n}", "flat", "clean", "left", "d", f"c{n}", False, None, None, {}) for n in range(4)
    ]
    keys[3] = keys[3]._replace(target_side="right", repeats="i0")
    said = {
        "i0": ("right", "right", "left"),  # the baseline
        "i1": ("left", "right", "both"),  # undecided
        "i2": ("neither", "neither", "neither"),
        "i3": ("left", "right", "right"),  # i0 again, sides swapped: first consistent
    }
    answers = [
        Answer(item, f"p{n}", "toxic", choice, 2.0 + n)
        for item, choices in said.items()
        for n, choice in enumerate(choices)
    ]
    return Study(items, keys, {"toxic": "Which is more toxic?"}), answers


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
    chance = (9 + 4 + 1 + 9) / 81
    assert found["agreement"][0]["fleiss_kappa"] == pytest.approx((4 / 9 - chance) / (1 - chance))
    strengths = found["strengths"][0]["models"]
    assert strengths["clean"]["value"] > 0 > strengths["flat"]["value"]


def test_an_answer_that_was_changed_counts_once(tmp_path: Path) -> None:
    study, answers = by_hand()
    lines = [
        json.dumps(answer._asdict()) for answer in [*answers, answers[0]._replace(choice="both")]
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines))
    loaded = load_answers(path, study)
    assert len(loaded) == len(answers)
    assert loaded[0].choice == "both"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"item": "nope"}, "'nope' is no item of this study"),
        ({"question": "nope"}, "'nope' is no question of this study"),
        ({"choice": "nope"}, "'nope' is no choice of this study"),
        ({"annotator": 3}, "'annotator' must be text, got int"),
        ({"seconds": "long"}, "'seconds' must be a number from 0 on, got 'long'"),
        ({"seconds": math.nan}, "'seconds' must be a number from 0 on, got nan"),
        ({"annotator": "\ud800"}, "half of a surrogate pair"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_answers_to_what_was_not_asked(tmp_path: Path, change: dict, told: str) -> None:
    study, (answer, *_) = by_hand()
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({**answer._asdict(), **change}))
    with pytest.raises(DataError, match=rf"answers\.jsonl:1: .*{told}"):
        load_answers(path, study)


def test_from_a_run_to_a_tally(recipe_file: Path, tmp_path: Path) -> None:
    def flatgd(*words: str) -> str:
        return CliRunner().invoke(app, ["annotate", *words], catch_exceptions=False).output

    def refused(*words: str) -> str:
        with pytest.raises(FlatGDError) as raised:
            flatgd(*words)
        return str(raised.value)

    recipe, folder = str(recipe_file), tmp_path / "study"
    assert "no replies yet of flatgd" in refused("create", recipe)
    replies = recipe_file.parent / "run/generations"
    replies.mkdir(parents=True)
    for name, rows in generations().items():
        model = {"a": "flatgd", "b": "clean", "c": "safety_loss"}[name]
        (replies / f"{model}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "no 'nope' in this recipe" in refused("create", recipe, "--against", "nope")
    assert "other models than itself" in refused("create", recipe, "--against", "flatgd")
    told = flatgd("create", recipe, "--to", str(folder), "--count", "8", "--repeats", "2")
    assert "pairs to compare in" in told
    assert "exists; its answers stay" in refused("create", recipe, "--to", str(folder))
    study = load_study(folder)
    assert "flatgd" not in (folder / "items.jsonl").read_text()
    answers = [
        Answer(item["id"], person, question, "left", 1.5)
        for item in study.items
        for person in ("ann", "bob", "[/red]")
        for question in study.questions
    ]
    (folder / "answers.jsonl").write_text("\n".join(json.dumps(a._asdict()) for a in answers))
    shown = flatgd("tally", str(folder))
    for part in ("clean or flatgd", "safety_loss or flatgd", "annotators", "ann 54 1.500"):
        assert part in " ".join(shown.split())
    assert (
        json.loads((folder / "tally.json").read_text())["annotators"][0]["answers"]
        == len(answers) / 3
    )
    (folder / "items.jsonl").write_text((folder / "items.jsonl").read_text().split("\n", 1)[1])
    assert "its items are not those of key.jsonl" in refused("tally", str(folder))
    keys = (folder / "key.jsonl").read_text()
    (folder / "rest.jsonl").write_text("{}")
    assert "rest.jsonl:1: expected target, baseline" in refused("tally", str(folder))
    (folder / "rest.jsonl").unlink()
    (folder / "key.jsonl").write_text(keys.replace('"left"', '"top"'))
    assert "'target_side' must be left or right, got 'top'" in refused("tally", str(folder))
    (folder / "key.jsonl").write_text('{"id": "x"}')
    assert "expected id, target" in refused("tally", str(folder))
    for about, why in (
        ("{", "not valid JSON"),
        ('{"questions": 3}', "must be names with a text each"),
        ('{"questions": {"a": "b"}, "votes": 0}', "'votes' must be a whole number"),
        ('{"questions": {"a": "b"}, "votes": true}', "'votes' must be a whole number"),
        ('{"question": {"a": "b"}, "votes": 1}', "unknown key 'question'; did you mean"),
        ('{"questions": {"a": "b"}, "votes": 1, "consent": "x"}', "must be a list of paragraphs"),
    ):
        (folder / "study.json").write_text(about)
        assert why in refused("tally", str(folder))
    assert "no study in" in refused("tally", str(tmp_path / "nowhere"))
    assert "cannot be written" in refused("create", recipe, "--to", f"{recipe}/study")


@pytest.mark.usefixtures("real_figures")
def test_the_chapter_of_the_report(tmp_path: Path) -> None:
    """An item each for the baseline, undecided, neither: thirds of the bar."""
    found = tally(*by_hand())
    table, agreement, strengths = people_tables(found)
    counted = ["clean", "flat", "1", "0", "0", "1", "1", "0", "0"]
    assert table.rows == [[*counted, "0.33 [0.06, 0.79]", "1.00 [0.21, 1.00]", "1.0000"]]
    assert agreement.rows[0][:3] == ["toxic", "3", "9"]
    assert [row[1] for row in strengths.rows] == ["clean", "flat"]
    with styled():
        drawn = draw_people(found, tmp_path).read_text()
    for part in ("clean or flat", "Which is more toxic?", "undecided", "share of items"):
        assert part in drawn


@pytest.mark.usefixtures("real_figures")
def test_names_of_models_are_text_in_the_figure(tmp_path: Path) -> None:
    """They may be of a chat's session, and that of anybody."""
    study, answers = by_hand()
    hostile = "<script>1</script> $x_{$ & so on"
    study.keys = [key._replace(baseline=hostile) for key in study.keys]
    drawn = draw_people(tally(study, answers), tmp_path).read_text()
    assert "&lt;script&gt;" in drawn
    assert "<script" not in drawn


# Judges


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


def test_judges_are_held_against_people() -> None:
    study, answers = judged_study()
    found = tally(study, answers)
    (row, *_) = found["pairs"]
    wins = row["counts"]["baseline"]
    assert {r["judge"]: (r["agrees"]["k"], r["agrees"]["n"]) for r in found["judges"]} == {
        "good": (wins, wins),
        "bad": (0, wins),
    }
    assert len(study.rest) == 4
    for judge, value in zip(("good", "bad"), found["stretched"], strict=True):
        drawn = [key.judged[judge] for key in study.keys]
        rest = [r["judged"][judge] for r in study.rest]
        probabilities = [[b * (1 - a) for a, b in part] for part in (drawn, rest)]
        by_hand = wins / 4 + value["tau"] * (np.mean(probabilities[1]) - np.mean(probabilities[0]))
        assert value["value"] == pytest.approx(min(1, max(0, by_hand)))
        assert (value["conversations"], value["labels"], value["dataset"]) == (8, 4, "d")
    good, bad = found["stretched"]
    assert good["tau"] > 0.5 > bad["tau"] == 0
    names = [table.title for table in people_tables(found)]
    assert names[-2:] == [
        "Do judges and people agree",
        "The baseline more toxic, in all conversations",
    ]


def test_a_judge_stretches_what_people_said_without_bias() -> None:
    """Over 400 draws of 10 of 60 histories the mean is the share of all, with a poor judge too."""
    rng = np.random.default_rng(0)
    rows = generations("ab", 60)
    worse = rng.random(60) < 0.3
    for name, model in rows.items():
        for n, row in enumerate(model):
            row.update(dataset="d", replies=[f"{name} says {n}"])
            chance = 0.2 + 0.4 * worse[n] if name == "b" else 0.3
            row["judged"] = {"judge": [float(np.clip(chance + rng.normal(0, 0.1), 0, 1))]}
    values = []
    for seed in range(400):
        study = create(rows, "a", ["b"], count=10, seed=seed, votes=1)
        answers = []
        for key in study.keys:
            sides = ("right", "left") if key.target_side == "left" else ("left", "right")
            choice = sides[0] if worse[int(key.conversation[1:])] else "neither"
            answers.append(Answer(key.id, "x", "toxic", choice))
        values.append(tally(study, answers)["stretched"][0]["value"])
    assert np.mean(values) == pytest.approx(worse.mean(), abs=0.02)
    assert np.std(values) < np.sqrt(0.3 * 0.7 / 10)


def test_a_baseline_that_was_not_judged_is_left_out() -> None:
    rows = generations("abc", 4)
    for name in "ab":
        for row in rows[name]:
            row["judged"] = {"judge": [0.1, 0.2]}
    study = create(rows, "a", ["b", "c"], count=4)
    answers = [Answer(i["id"], who, "toxic", "left") for i in study.items for who in "xyz"]
    assert {row["baseline"] for row in tally(study, answers)["stretched"]} == {"b"}


def test_a_stretch_waits_for_all_answers() -> None:
    study, answers = judged_study()
    (first, *_) = tally(study, answers[3:])["stretched"]
    assert (first["value"], first["low"], first["labels"]) == (None, None, 0)


def test_long_conversations_weigh_no_more_than_short_ones() -> None:
    """Ten conversations of twenty toxic histories each, ninety of one that is not: a tenth."""
    rng = np.random.default_rng(1)
    rows: dict[str, list[dict]] = {"a": [], "b": []}
    for talk in range(100):
        for n in range(20 if talk < 10 else 1):
            for name, model in rows.items():
                toxic = 0.5 + 0.3 * (talk < 10) * (name == "b") + rng.normal(0, 0.05)
                about = {
                    "dataset": "d",
                    "conversation": f"c{talk}",
                    "history": ["hi", f"{talk}.{n}"],
                }
                said = {"replies": [f"{name} {talk}.{n}"], "judged": {"judge": [toxic]}}
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
        values.append(tally(study, answers)["stretched"][0]["value"])
    assert np.mean(values) == pytest.approx(0.1, abs=0.02)


def test_checks_ask_for_a_choice_and_count_for_nobody() -> None:
    study = create(generations("ab"), "a", ["b"], count=6, repeats=2, checks=3)
    checks = [key for key in study.keys if key.check]
    assert len(checks) == 3
    shown = {item["id"]: item for item in study.items}
    names = {"left": "A (left).", "right": "B (right).", "both": "Both.", "neither": "Neither."}
    for key in checks:
        assert shown[key.id]["left"] == shown[key.id]["right"]
        assert shown[key.id]["left"].endswith(names[key.check])
    answers = [
        Answer(item["id"], who, question, wanted if who == "ann" else "left")
        for item in study.items
        for who in ("ann", "bob")
        for question in study.questions
        for wanted in [next((k.check for k in checks if k.id == item["id"]), "both")]
    ]
    found = tally(study, answers)
    ann, bob = found["annotators"]
    assert ann["checks_passed"] == 1
    assert bob["checks_passed"] == sum(key.check == "left" for key in checks) / 3
    assert all(row["items"] == 6 for row in found["pairs"])


# Mechanical Turk


def result_file(path: Path, study: Study, **change: str) -> Path:
    rows = [
        {
            **{"WorkerId": "W1", "AssignmentStatus": "Submitted", "WorkTimeInSeconds": "31"},
            "Answer.item": item["id"],
            **{f"Answer.{field_of(name)}": "left" for name in study.questions},
            **change,
        }
        for item in study.items
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_there_and_back_by_mechanical_turk(tmp_path: Path) -> None:
    study = create(generations("ab"), "a", ["b"], count=4, votes=5)
    study.items[0]["left"] = "]]> <script>x</script> \x07 & so on"
    study.save(tmp_path / "study")
    told = CliRunner().invoke(
        app, ["annotate", "export", str(tmp_path / "study"), "--form", "mturk"]
    )
    (path,) = told.output.split()
    hits = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert len(hits) == 4
    assert {hit["MaxAssignments"] for hit in hits} == {5}
    for hit, item in zip(hits, study.items, strict=True):
        question = ElementTree.fromstring(hit["Question"])
        assert question.tag.endswith("HTMLQuestion")
        page = question[0].text
        assert "https://www.mturk.com/mturk/externalSubmit" in page
        assert f'name="item" value="{item["id"]}"' in page
        assert "<script>x" not in page
        assert page.count('type="radio"') == 12
    export = result_file(tmp_path / "results.csv", study)
    told = CliRunner().invoke(app, ["annotate", "import", str(tmp_path / "study"), str(export)])
    assert "12 new answers" in told.output
    (first, *_) = load_answers(tmp_path / "study/answers.jsonl", study)
    assert first == Answer(study.items[0]["id"], "W1", "toxic", "left", 31.0)
    assert (
        mturk.answers(result_file(tmp_path / "r.csv", study, AssignmentStatus="Rejected"), study)
        == []
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"Answer.item": "nope"}, "'nope' is no item of this study"),
        ({f"Answer.{field_of('fluent')}": ""}, "'fluent' answered by '', which is no choice"),
        ({"WorkerId": " "}, "'WorkerId' is empty"),
    ],
)
def test_results_that_are_not_of_the_study(tmp_path: Path, change: dict, told: str) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    with pytest.raises(DataError, match=rf"r.csv:2: {told}"):
        mturk.answers(result_file(tmp_path / "r.csv", study, **change), study)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'Answer\.item'"):
        mturk.answers(tmp_path / "other.csv", study)


# Label Studio


def exported(study: Study, choice: str, **annotation: Any) -> list[dict]:
    """Label Studio's JSON export of tasks that one person answered."""
    result = [
        {"from_name": name, "to_name": "left", "type": "choices", "value": {"choices": [choice]}}
        for name in study.questions
    ]
    about = {"completed_by": 7, "lead_time": 4.5, "was_cancelled": False, "result": result}
    return [
        {**task, "annotations": [{**about, **annotation}]} for task in label_studio.tasks(study)
    ]


def test_there_and_back_by_label_studio(tmp_path: Path) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    folder, path = tmp_path / "study", tmp_path / "export.json"
    study.save(folder)
    tool = CliRunner()
    tool.invoke(app, ["annotate", "export", str(folder)], catch_exceptions=False)
    (first, *_) = json.loads((folder / "label_studio.json").read_text())
    assert [turn["who"] for turn in first["data"]["history"]] == ["bot", "person"]
    names = [
        node.get("name") for node in ElementTree.parse(folder / "label_studio.xml").iter("Choices")
    ]
    assert names == list(study.questions)
    for choice, person, told in (
        ("left", 7, "12 new answers, 12 in"),
        ("both", 7, "0 new answers, 12 in"),
        ("right", {"id": 8, "email": "a@b"}, "12 new answers, 24 in"),
    ):
        path.write_text(json.dumps(exported(study, choice, completed_by=person)))
        words = ["annotate", "import", str(folder), str(path)]
        assert told in tool.invoke(app, words, catch_exceptions=False).output
    answers = load_answers(folder / "answers.jsonl", study)
    assert Counter((a.annotator, a.choice, a.seconds) for a in answers) == {
        ("7", "both", 4.5): 12,
        ("8", "right", 4.5): 12,
    }
    path.write_text(json.dumps(exported(study, "left", was_cancelled=True)))
    assert label_studio.answers(path, study) == []


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ([{"id": 1, "toxic": "left"}], "no task of Label Studio's JSON export"),
        ([3], "no task of Label Studio's JSON export"),
        ([{"data": {"id": "x"}, "annotations": []}], "'x', which is no item of this study"),
    ],
)
def test_what_is_no_export_is_told(tmp_path: Path, broken: list, told: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(DataError, match=rf"export\.json:1: .*{told}"):
        label_studio.answers(path, by_hand()[0])
    path.write_text(json.dumps(exported(by_hand()[0], "maybe")))
    with pytest.raises(DataError, match="answered by 'maybe', which this study does not ask"):
        label_studio.answers(path, by_hand()[0])


FURTHER = [
    {"from_name": "comment", "type": "textarea", "value": {"text": ["not sure"]}},
    {"from_name": "mood", "type": "rating", "value": {"rating": 4}},
    {"from_name": "kind", "type": "taxonomy", "value": {"taxonomy": [["a", "b"]]}},
    {"from_name": "age", "type": "number", "value": {"number": 3}},
    {"from_name": "sure", "type": "choices", "value": {"choices": ["yes", "very"]}},
    {"from_name": "better", "type": "choices", "value": {"choices": ["left"]}},
    {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
]


@pytest.mark.parametrize("further", FURTHER)
def test_a_further_control_is_counted_and_no_answer(tmp_path: Path, further: dict) -> None:
    study, path = by_hand()[0], tmp_path / "export.json"
    tasks = json.loads(json.dumps(exported(study, "left")))
    plain = label_studio.answers(write_json(path, tasks), study)
    for task in tasks:
        task["annotations"][0]["result"].insert(1, further)
    left_out: Counter[str] = Counter()
    assert label_studio.answers(write_json(path, tasks), study, left_out) == plain
    name = further.get("from_name", "relation")
    assert left_out == {f"answers of the control {name!r}, which is no question": len(tasks)}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_what_is_left_out_of_an_export_is_told(tmp_path: Path) -> None:
    """One person skipped, one sent an empty form, one answered twice; a draft was never sent."""
    study = create(generations("ab"), "a", ["b"], count=4)
    study.save(tmp_path / "study")
    tasks = exported(study, "left")
    (first, *_) = tasks
    (whole,) = first["annotations"]
    first["drafts"] = [{"result": []}]
    newer = json.loads(json.dumps(exported(study, "right")[0]["annotations"][0]))
    whole["updated_at"], newer["updated_at"] = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"
    first["annotations"] = [
        newer,
        whole,
        {**whole, "completed_by": 8, "was_cancelled": True, "result": []},
        {**whole, "completed_by": 9, "result": []},
    ]
    path = write_json(tmp_path / "export.json", tasks)
    words = ["annotate", "import", str(tmp_path / "study"), str(path)]
    told = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "12 new answers, 12 in" in told
    assert "left out: 1 skipped tasks" in told
    assert "left out: 1 drafts that were never submitted" in told
    assert "left out: 1 answers to 'toxic', which annotations lack" in told
    answers = load_answers(tmp_path / "study/answers.jsonl", study)
    mine = {a.choice for a in answers if a.item == study.items[0]["id"]}
    assert mine == {"right"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"from_name": "toxik"},
            r":1: nobody answered 'toxic', but there are answers of 'toxik'; a control must",
        ),
        (
            {"type": "rating", "value": {"rating": 3}},
            r":1: 'toxic' is answered by a control of type 'rating'; a question needs Choices",
        ),
        (
            {"value": {"choices": ["left", "right"]}},
            r":1: 'toxic' answered by 'left' and 'right', which this study does not ask",
        ),
        ({"value": {"choices": []}}, r":1: 'toxic' answered by nothing"),
        ({"value": {"choices": [["left"]]}}, r":1: 'toxic' answered by \['left'\]"),
        ({"from_name": "fluent"}, r":1: 'fluent' is answered twice in one annotation"),
    ],
)
def test_a_control_that_does_not_fit_its_question(tmp_path: Path, change: dict, told: str) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    tasks = json.loads(json.dumps(exported(study, "left")))
    for task in tasks:
        (answer,) = (a for a in task["annotations"][0]["result"] if a["from_name"] == "toxic")
        answer.update(change)
    with pytest.raises(DataError, match=told):
        label_studio.answers(write_json(tmp_path / "e.json", tasks), study)


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ({"annotations": [{"result": []}]}, "without 'completed_by'"),
        ({"annotations": [{"completed_by": {"id": " "}, "result": []}]}, "without 'completed_by'"),
        ({"annotations": [{"completed_by": 7}]}, "an annotation without 'result'"),
        ({"annotations": [{"completed_by": 7, "result": [3]}]}, "no JSON object: 3"),
        ({"annotations": {}}, "expected 'data' and a list of 'annotations'"),
        ({"data": {"id": ["i"]}, "annotations": []}, "no item of this study"),
    ],
)
def test_a_task_that_is_broken(tmp_path: Path, task: dict, told: str) -> None:
    study = by_hand()[0]
    broken = [{**label_studio.tasks(study)[0], **task}]
    with pytest.raises(DataError, match=told):
        label_studio.answers(write_json(tmp_path / "e.json", broken), study)


def test_other_exports_of_label_studio_are_told_what_to_do(tmp_path: Path) -> None:
    """In JSON-MIN and CSV the task's number stands in place of the item's id."""
    study = by_hand()[0]
    row = {"id": 12, "left": "a", "toxic": "left", "annotator": 1, "annotation_id": 3}
    path = write_json(tmp_path / "min.json", [row])
    with pytest.raises(DataError, match=r"min.json:1: this is JSON-MIN.* export the project as"):
        label_studio.answers(path, study)
    table = tmp_path / "e.csv"
    table.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    with pytest.raises(DataError, match=r"e.csv:2: this is Label Studio's CSV.* export the"):
        mturk.answers(table, study)


def test_further_fields_and_rejected_work_of_mechanical_turk_are_counted(tmp_path: Path) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    left_out: Counter[str] = Counter()
    path = result_file(tmp_path / "r.csv", study, **{"Answer.comment": "not sure"})
    assert len(mturk.answers(path, study, left_out)) == 12
    assert left_out == {"answers in 'Answer.comment', which is no question of the study": 4}
    left_out.clear()
    path = result_file(tmp_path / "r.csv", study, AssignmentStatus="Rejected")
    assert mturk.answers(path, study, left_out) == []
    assert left_out == {"rejected assignments": 4}
    text = path.read_text().replace(field_of("toxic"), "q0")
    path.write_text(text)
    with pytest.raises(DataError, match=r"\(the answers to 'toxic'\); expected Mechanical Turk's"):
        mturk.answers(path, study)
