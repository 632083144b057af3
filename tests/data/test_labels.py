"""What a label means, what is none, ids of conversations, and replies labelled both ways."""

import logging
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from published import faults
from pydantic import ValidationError

from flatgd.config.labels import is_blank, plain_value
from flatgd.config.source import Data, Source
from flatgd.data.browse import load_splits
from flatgd.data.formats.prosocial import load_prosocial
from flatgd.data.jsonl import RowFormat, load_jsonl
from flatgd.data.sets import Sets, load_sets, load_source, share_position
from flatgd.data.votes import count_contradictory, resolve_votes
from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, RecipeError
from flatgd.training.trainer import _groups

NAN = float("nan")


def written(path: Path, labels: list[Any]) -> Path:
    """A row a label, in the form that the suffix says."""
    if path.suffix == ".csv":
        path.write_text("prompt,completion,label\n" + "".join(f"hi,{n},{x}\n" for n, x in labels))
        return path
    rows = [{"prompt": "hi", "completion": str(n), "label": label} for n, label in labels]
    return write_rows(path, rows)


def read(folder: Path, labels: list[Any], suffix: str = "jsonl", **layout: Any) -> list[Any]:
    path = written(folder / f"x.{suffix}", list(enumerate(labels)))
    return [row.is_safe for row in load_jsonl(path, RowFormat(**layout))]


@pytest.mark.parametrize("value", [None, NAN, "", "  ", "\u200b", ["toxic", "ok"], []])
@pytest.mark.parametrize(
    "layout",
    [{}, {"toxic_values": ("toxic",)}, {"toxic_values": ("toxic",), "safe_values": ("ok",)}],
)
def test_what_is_no_label(tmp_path: Path, value: Any, layout: dict[str, Any]) -> None:
    labels = ["ok", "toxic"] if layout else [True, False]
    assert read(tmp_path, [*labels, value], **layout) == [True, False, None]
    reported = read(tmp_path, [*labels, value], label="toxic", **layout)
    assert reported == [True, False, None if isinstance(value, list) else False]


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN"])
def test_blank_cells_are_no_label(tmp_path: Path, cell: str) -> None:
    assert read(tmp_path, ["true", cell, "false"], "csv") == [True, None, False]
    assert read(tmp_path, ["ok", cell, "bad"], "csv", safe_values=("ok",)) == [True, None, False]


@pytest.mark.parametrize(
    ("named", "labels"),
    [
        ("toxic", ["toxic", "Toxic", "TOXIC ", " toxic", "to\u00adxic"]),
        ("1", [1, 1.0, "1", "1.0", " 1 ", "1e0", "+1"]),
        ("true", [True, "true", "TRUE", "True "]),
        ("-0.50", [-0.5, "-0.5", "-.5"]),
        ("Not Safe", ["not safe", "not  safe"]),
    ],
)
def test_spellings_of_one_label(tmp_path: Path, named: str, labels: list[Any]) -> None:
    both = {"toxic_values": (named,), "safe_values": ("fine",)}
    wanted = [False] * len(labels) + [True]
    assert read(tmp_path, [*labels, "Fine"], **both) == wanted
    assert read(tmp_path, [*labels, "other"], toxic_values=(named,)) == wanted
    assert read(tmp_path, [*labels, "other"], safe_values=(named,)) == [not w for w in wanted]


def test_numbers_that_differ_stay_apart() -> None:
    values = [0, 1, 10, 0.1, "01e1x", True, "1 0", 2**53, 2**53 + 1, "9" * 400]
    assert len({plain_value(value) for value in values}) == len(values)
    assert plain_value("007") == plain_value(7.0) == "7"
    assert plain_value("-0") == plain_value(0) == "0"


def test_blank_is_what_has_no_plain_value() -> None:
    texts = ["", " \t\n\x1c", "NaN", " nan ", "\u200b", "\u00a0", "\uff4ean", "na n", "nano", "-"]
    for value in (*texts, None, NAN, 0, 0.0, True, False, []):
        assert is_blank(value) is (plain_value(value) is None)


def test_with_both_lists_any_other_label_is_an_error_with_its_line(tmp_path: Path) -> None:
    layout = RowFormat(toxic_values=("hate",), safe_values=("fine",))
    path = written(tmp_path / "x.csv", list(enumerate(["hate", "fine", "meh", "hat"])))
    reported = faults(load_jsonl, path, layout)
    assert reported == [
        "4: label 'meh' is in neither safe_values nor toxic_values",
        "5: label 'hat' is in neither safe_values nor toxic_values",
    ]


@pytest.mark.parametrize("given", ["toxic_values", "safe_values"])
@pytest.mark.parametrize(
    "labels", [["hate", "fine", "meh"], ["hate", "hate"], ["fine", "meh"], ["Hat", "fine"]]
)
def test_one_list_alone_needs_two_labels(tmp_path: Path, given: str, labels: list[str]) -> None:
    path = written(tmp_path / "x.jsonl", list(enumerate(labels)))
    (reported,) = faults(load_jsonl, path, RowFormat(**{given: ("hate",)}))  # type: ignore[arg-type]
    other = {"toxic_values": "safe_values", "safe_values": "toxic_values"}[given]
    assert reported.startswith(f"0: {given} alone needs a file with two labels")
    assert f"Name the others too, as {other}: [...]" in reported
    assert f"'{labels[0].lower()}' (" in reported


def test_one_list_alone_and_a_file_with_two_labels(tmp_path: Path) -> None:
    assert read(tmp_path, ["hate", "fine"], toxic_values=("hate", "rude")) == [False, True]
    assert read(tmp_path, ["hate", "fine"], safe_values=("fine",)) == [False, True]
    assert read(tmp_path, [None, None], toxic_values=("hate",)) == [None, None]


def test_faults_in_the_lists() -> None:
    def source(**fields: Any) -> Source:
        return Source(name="x", format="jsonl", path="x.jsonl", **fields)

    assert source(toxic_values=[1, "hate"], safe_values=[0]).toxic_values == ("1", "hate")
    with pytest.raises(ValidationError, match="both hold 'hate'"):
        source(toxic_values=["hate"], safe_values=["Hate "])
    with pytest.raises(ValidationError, match="toxic_values: ' ' is no label"):
        source(toxic_values=[" "])
    with pytest.raises(ValidationError, match="safe_values is for tables, not for format bad"):
        Source(name="x", format="bad", path="x", safe_values=["a"])
    with pytest.raises(ValidationError, match="so votes has no effect"):
        source(label_by="question", votes="majority")


def test_labels_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for label in (1, 0, "safe", "maybe", "yes", {}, {"a": 1}):
        path = written(tmp_path / "x.jsonl", [("a", True), ("b", label)])
        assert faults(load_jsonl, path)[0].startswith("2: ")
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b"}])
    assert "no 'label'" in faults(load_jsonl, path)[0]


# Ids


@pytest.mark.parametrize("value", [None, NAN, "", " ", "nan"])
def test_no_id_is_no_conversation(tmp_path: Path, value: Any) -> None:
    rows = [
        {"prompt": f"q{n}", "completion": "a", "label": True, "conversation": value}
        for n in range(3)
    ]
    assert (
        len({row.conversation for row in load_jsonl(write_rows(tmp_path / "a.jsonl", rows))}) == 3
    )
    table = tmp_path / "a.csv"
    cell = "" if value is None else value
    lines = [f"q{n},a,true,{cell}\n" for n in range(3)]
    table.write_text("prompt,completion,label,conversation\n" + "".join(lines))
    assert len({row.conversation for row in load_jsonl(table)}) == 3


def test_ids_are_kept_and_numbers_are_one(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{n}", "completion": "a", "label": True, "conversation": value}
        for n, value in enumerate((1, 1.0, "1", "Talk 1", "talk 1"))
    ]
    names = [row.conversation for row in load_jsonl(write_rows(tmp_path / "a.jsonl", rows))]
    assert names == ["jsonl:1"] * 3 + ["jsonl:Talk 1", "jsonl:talk 1"]
    for value in ([1], {"a": 1}):
        path = write_rows(tmp_path / "b.jsonl", [{**rows[0], "conversation": value}])
        assert "text or a number" in faults(load_jsonl, path)[0]


@pytest.mark.parametrize("value", [None, NAN, ""])
def test_turns_without_a_dialogue_are_refused(tmp_path: Path, value: Any) -> None:
    turn = {"context": "a", "response": "b", "safety_label": "__casual__"}
    path = write_rows(
        tmp_path / "a.json", [{**turn, "dialogue_id": 0}, {**turn, "dialogue_id": value}]
    )
    assert faults(load_prosocial, path, "train")[0].startswith("2: no 'dialogue_id'")
    path = write_rows(tmp_path / "a.json", [turn])
    assert faults(load_prosocial, path, "train")[0].startswith("1: no 'dialogue_id'")


# Rows without a label


def test_rows_without_a_label_train_nothing_in_python(caplog: pytest.LogCaptureFixture) -> None:
    safe, toxic = (Dialogue(("a",), "b", label, "x", "1") for label in (True, False))
    none = Dialogue(("a",), "b", None, "x", "1")
    null = {"prompt": "a", "completion": "b", "label": None}
    with caplog.at_level(logging.WARNING):
        groups = _groups([safe, none, (safe, toxic), (safe, none), null], "train_dataset")
    assert groups == [(safe,), (safe, toxic)]
    assert [record.getMessage() for record in caplog.records] == [
        "train_dataset: 3 of 5 rows have no label and are left out"
    ]
    with pytest.raises(DataError, match="train_dataset: 2 of 2 rows have no label"):
        _groups([none, null], "train_dataset")


def test_rows_without_a_label_are_counted_in_a_recipe(tmp_path: Path) -> None:
    def source(part: str) -> Source:
        rows = [
            {"prompt": f"{part}{n}", "completion": "b", "label": label}
            for n, label in enumerate(("ok", "bad", None, NAN, ["ok", "ok"]))
        ]
        path = write_rows(tmp_path / f"{part}.jsonl", rows)
        return Source(name=part, format="jsonl", path=str(path), toxic_values=["bad"])

    sets = load_sets(Data(policy=[source("p")], judge=[source("j")], test=[source("t")]))
    assert (len(sets.policy), len(sets.judge), len(sets.test)) == (2, 2, 5)
    assert ("data: left out", "3 of policy: without a label") in sets.described()


# Votes on one reply


def votes(folder: Path, part: str, marks: dict[str, list[bool | None]], **fields: Any) -> Source:
    rows = [
        {"prompt": f"{part}?", "completion": reply, "label": mark}
        for reply, found in marks.items()
        for mark in found
    ]
    path = write_rows(folder / f"{part}.jsonl", rows)
    return Source(name=part, format="jsonl", path=str(path), **fields)


MARKS: dict[str, list[bool | None]] = {
    "two of three": [True, True, False],
    "one of three": [False, True, False],
    "tie": [True, False],
    "agreed": [False, False],
    "once": [True],
    "unrated": [None],
}
OTHER: dict[str, list[bool | None]] = {"nice": [True], "rude": [False]}


def sets_of(folder: Path, **fields: Any) -> Sets:
    policy = votes(folder, "p", MARKS, **fields)
    return load_sets(
        Data(policy=[policy], judge=[votes(folder, "j", OTHER)], test=[votes(folder, "t", OTHER)])
    )


def test_both_labels_are_counted_and_shown(tmp_path: Path) -> None:
    sets = sets_of(tmp_path)
    assert len(sets.policy) == 11
    assert sets.contradictory == {"policy": 3, "judge": 0, "test": 0, "eval": 0}
    shown = ("data: both labels", "3 replies of policy are labelled safe and toxic")
    assert shown in sets.described()
    assert not any("judge are" in text for _, text in sets.described())


def test_majority(tmp_path: Path) -> None:
    sets = sets_of(tmp_path, votes="majority")
    assert {row.reply: row.is_safe for row in sets.policy} == {
        "two of three": True,
        "one of three": False,
        "agreed": False,
        "once": True,
    }
    assert len(sets.policy) == 4
    assert sets.contradictory["policy"] == 0
    assert sets.dropped["policy: votes that tie"] == 2
    assert sets.dropped["policy: further votes on a reply"] == 5
    assert sets.dropped["policy: without a label"] == 1


def test_drop(tmp_path: Path) -> None:
    sets = sets_of(tmp_path, votes="drop")
    assert [row.reply for row in sets.policy] == ["agreed", "agreed", "once"]
    assert sets.dropped["policy: labelled safe and toxic"] == 8


def test_a_pair_of_equal_replies_is_a_tie(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "hi", "chosen": "a", "rejected": "a"}])
    rows = load_jsonl(path)
    assert count_contradictory(rows) == 1
    assert resolve_votes(rows, "majority") == ([], [("votes that tie", row) for row in rows])


def test_the_same_reply_is_the_same_as_written() -> None:
    def row(history: Any, reply: str, is_safe: bool, **fields: Any) -> Dialogue:
        return Dialogue(history, reply, is_safe, "a", "1", **fields)

    one = row(("hi",), "hello", True)
    assert count_contradictory([one, row(("hi",), "hello", False)]) == 1
    for other in (
        row(("Hi",), "hello", False),
        row(("hi",), "hello ", False),
        row(("hi",), "hello", False, speaker="human"),
        row(("hi",), "hello", False, system="be brief"),
    ):
        assert count_contradictory([one, other]) == 0


def test_votes_are_settled_before_shares_are_cut(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "completion": "hello", "label": n > 0, "conversation": f"c{n}"}
        for n in range(3)
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    shares = ((0.0, 0.5), (0.5, 1.0))
    parts = [
        load_source(Source(name="a", format="jsonl", path=str(path), votes="majority", share=share))
        for share in shares
    ]
    assert [row.is_safe for part in parts for row in part.rows] == [True]
    assert [sum(part.left_out.values()) for part in parts] == [
        sum(low <= share_position(f"jsonl:c{n}") < high for n in (1, 2)) for low, high in shares
    ]


def test_fields_of_recipes_are_refused_where_whole_files_are_read(tmp_path: Path) -> None:
    path = str(
        write_rows(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    )
    for field in ("votes=majority", "share=[0, 0.5]", "weight=2", "keep_canned=true"):
        with pytest.raises(RecipeError, match="has an effect in recipes only"):
            load_splits("jsonl", [path], [field])
