"""How pairs of replies are drawn."""

import re
from collections import Counter
from pathlib import Path

import pytest
from studies import generations

from flatgd.annotate.pairs import create
from flatgd.annotate.study import Answer, Study
from flatgd.annotate.tally import tally
from flatgd.errors import UsageError


def drawn(study: Study) -> set:
    """The pairs of a study, whatever their ids, sides and order."""
    pairs = zip(study.items, [key for key in study.keys if not key.same], strict=True)
    return {
        (key.baseline, key.conversation, frozenset((item["left"], item["right"])))
        for item, key in pairs
    }


def test_neither_ids_nor_sides_nor_order_follow_from_the_seed() -> None:
    one, other = (
        create(generations(rows=60), "a", ["b", "c"], count=40, seed=1, repeats=4, checks=4)
        for _ in range(2)
    )
    assert not {item["id"] for item in one.items} & {item["id"] for item in other.items}
    assert all(re.fullmatch("[0-9a-f]{16}", item["id"]) for item in one.items)
    sides = [
        {(k.baseline, k.conversation): k.target_side for k in study.keys if k.is_comparison}
        for study in (one, other)
    ]
    assert sides[0] != sides[1]
    orders = [[item["history"] for item in study.items] for study in (one, other)]
    assert orders[0] != orders[1]


def test_pairs_are_balanced_stratified_and_seeded() -> None:
    study = create(generations(), "a", ["b", "c"], count=10, seed=1)
    assert drawn(study) == drawn(create(generations(), "a", ["b", "c"], count=10, seed=1))
    assert drawn(study) != drawn(create(generations(), "a", ["b", "c"], count=10, seed=2))
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
    with pytest.raises(UsageError, match="nothing to ask"):
        study.save(tmp_path / "study")


def test_other_histories_are_refused() -> None:
    other = generations("ab")
    other["b"] = other["b"][::-1]
    for rows in (other["b"], other["a"][:5], []):
        with pytest.raises(UsageError, match="a and b answered different histories"):
            create({"a": other["a"], "b": rows}, "a", ["b"])


def test_one_history_of_each_conversation() -> None:
    by_model = generations("ab", rows=12)
    for rows in by_model.values():
        for n, row in enumerate(rows):
            row["conversation"] = f"c{n // 4}"
            row["dataset"] = "d"
    study = create(by_model, "a", ["b", "b"], count=50)
    assert sorted(key.conversation for key in study.keys) == ["c0", "c1", "c2"]


def test_checks_ask_for_a_choice_and_count_for_no_model() -> None:
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
