"""What loaders leave out on purpose is counted, in a recipe's sets and by `flatgd data`."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from published import A, U, message, thread
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.source import Data, Source
from flatgd.data import sets as data_sets
from flatgd.data.canned import is_canned
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.formats.hh import load_hh
from flatgd.data.formats.toxichat import load_toxichat
from flatgd.data.jsonl import RowFormat, dialogues_from_row, load_jsonl
from flatgd.data.sets import load_sets
from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.io.records import PAIR_READ, collect_left_out
from flatgd.judges.calibration import toxic_labels
from flatgd.judges.linear import train_judge


def left_out(load: Any, *args: Any) -> list[str]:
    with collect_left_out() as found:
        load(*args)
    return [f"{problem.line}: {problem.reason}" for problem in found]


def test_empty_replies_of_published_sets(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    records = [{"context": "a", "response": text, "label": "Safe"} for text in ("b", "", "c")]
    path.write_text(json.dumps(records, indent=0))
    (found,) = left_out(load_diasafety, path, "train")
    assert found.endswith(": empty reply")
    start = "\n\nHuman: hi\n\nAssistant:"
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": f"{start} b", "rejected": start}])
    assert left_out(load_hh, path, "train") == ["1: empty reply", f"1: {PAIR_READ.reason}"]
    row = thread(final_gpt3_response={"turn_id": 2, "text": "", "offense_label": ""})
    path = write_rows(tmp_path / "b.jsonl", [row])
    assert left_out(load_toxichat, path, "train") == ["1: empty reply"]


def test_a_folder_of_diasafety_counts_the_empty_replies_of_its_split(tmp_path: Path) -> None:
    for name, replies in (("train", ["b", ""]), ("val", ["c", ""]), ("test", ["d"])):
        rows = [{"context": name, "response": text, "label": "Safe"} for text in replies]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    for split, count in (("train", 1), ("val", 1), ("test", 0)):
        assert len(left_out(load_diasafety, tmp_path, split)) == count


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"thinking": "hm"}, True),
        ({"reasoning_content": "hm"}, True),
        ({"thinking": "", "reasoning": None}, True),
    ],
)
def test_weights_and_thinking_of_messages(
    tmp_path: Path, fields: dict[str, Any], kept: bool
) -> None:
    reply = {**message(A, "hello"), **fields}
    row = {"messages": [message(U, "hi"), reply], "label": True}
    path = write_rows(tmp_path / "a.jsonl", [row])
    with collect_left_out() as found:
        assert len(load_jsonl(path)) == kept
    is_counted = fields.get("weight") == 0 or any(
        fields.get(key) for key in ("thinking", "reasoning_content")
    )
    assert len(found) == is_counted
    if not kept:
        with pytest.raises(ValueError, match="reply with weight 0"):
            dialogues_from_row(row)


def test_a_weight_of_an_earlier_message_changes_nothing(tmp_path: Path) -> None:
    messages = [message(U, "hi"), {**message(A, "hm"), "weight": 0}, message(U, "so?")]
    row = {"messages": [*messages, message(A, "hello")], "label": True}
    assert left_out(load_jsonl, write_rows(tmp_path / "a.jsonl", [row])) == []


def test_one_reply_of_a_pair_may_have_no_weight(tmp_path: Path) -> None:
    pair = {"prompt": "hi", "chosen": [message(A, "b")]}
    row = {**pair, "rejected": [{**message(A, "c"), "weight": 0}]}
    path = write_rows(tmp_path / "a.jsonl", [row])
    with collect_left_out() as found:
        assert [d.reply for d in load_jsonl(path)] == ["b"]
    assert [problem.reason for problem in found] == [PAIR_READ.reason, "reply with weight 0"]


def test_the_sets_of_a_recipe_count_what_is_left_out(tmp_path: Path) -> None:
    def source(name: str) -> Source:
        rows = [
            {"messages": [message(U, f"{name}{n}"), message(A, f"{name} {n}")], "label": n > 0}
            for n in range(2)
        ]
        spare = {**message(A, "spare"), "weight": 0}
        rows.append({"messages": [message(U, name), spare], "label": True})
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        return Source(name=name, format="jsonl", path=str(path))

    sets = load_sets(Data(policy=[source("p")], judge=[source("j")], test=[source("t")]))
    assert sets.dropped["policy: reply with weight 0"] == 1
    assert ("data: left out", "1 of test: reply with weight 0") in sets.described()


def test_a_file_of_several_sources_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And counts for each source as if it were read for each."""
    rows: list[dict[str, Any]] = [
        {"prompt": f"q{n}", "completion": f"r{n}", "label": n % 2 == 0, "conversation": f"c{n}"}
        for n in range(40)
    ]
    rows.append({"messages": [message(U, "q"), {**message(A, "r"), "weight": 0}], "label": True})
    path = write_rows(tmp_path / "a.jsonl", rows)
    source = Source(name="a", format="jsonl", path=str(path))
    parts = {"policy": (0, 0.4), "judge": (0.4, 0.7), "test": (0.7, 1)}
    data = Data(**{n: [source.model_copy(update={"share": s})] for n, s in parts.items()})
    read = []

    def load(path: Path, row_format: RowFormat) -> list[Dialogue]:
        read.append(row_format)
        return load_jsonl(path, row_format)

    monkeypatch.setattr(data_sets, "load_jsonl", load)
    sets = load_sets(data)
    assert len(read) == 1
    assert [sets.dropped[f"{part}: reply with weight 0"] for part in parts] == [1, 1, 1]
    assert len(sets.policy) + len(sets.judge) + len(sets.test) == 40
    other = {"name": "b", "share": (0, 0.4), "toxic_values": ("false",), "safe_values": ("true",)}
    both = [*data.policy, source.model_copy(update=other)]
    again = load_sets(data.model_copy(update={"policy": both}))
    assert len(read) == 3  # other fields may read other rows
    assert len(again.policy) == 2 * len(sets.policy)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("HEY Do You want to talk about something else?", True),
        ("do you want to talk about \u017fomething el\u017fe", True),  # the old long s
        ("do you want to talk about something elsewhere", False),
        ("something else", False),
    ],
)
def test_canned_replies_in_any_case(text: str, wanted: bool) -> None:
    assert is_canned(text) is wanted


def test_stats_and_convert_say_what_they_leave_out(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant:"
    path = write_rows(tmp_path / "a.jsonl", [{"chosen": f"{start} b", "rejected": start}])

    def typed(*words: str) -> str:
        return CliRunner().invoke(app, ["data", *words]).output

    assert "left out: 1 x empty reply" in typed("stats", "hh", str(path))
    assert json.loads(typed("stats", "hh", str(path), "--json"))["left_out"] == {
        "empty reply": 1,
        PAIR_READ.reason: 1,
    }
    target = tmp_path / "b.jsonl"
    assert "left out: 1 x empty reply" in typed("convert", "hh", str(path), "--to", str(target))


def test_judges_refuse_rows_without_a_label(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "completion": f"r{n}", "label": label}
        for n, label in enumerate([True, False, None, None])
    ]
    loaded = load_jsonl(write_rows(tmp_path / "a.jsonl", rows))
    assert toxic_labels(loaded[:2]).tolist() == [False, True]
    for judge in (toxic_labels, lambda rows: train_judge(rows, 0.05)):
        with pytest.raises(ModelError, match="2 of 4 rows have no label"):
            judge(loaded)
