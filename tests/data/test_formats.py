"""Every published format, on small invented files and on the real ones that ship."""

import gzip
import json
from pathlib import Path

from published import TALK, convabuse, faults, hub_form, thread, turn, utterance

from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.convabuse import load_convabuse
from flatgd.data.formats.hh import load_hh
from flatgd.data.formats.prosocial import load_prosocial
from flatgd.data.formats.toxichat import load_toxichat
from flatgd.data.splits import find_split

# BBF


def single_turn(**lists: list) -> dict:
    """A whole single_turn_safety.json; `standard_train_1_good=[...]` fills a list."""
    data: dict = {}
    for task in ("standard", "adversarial"):
        for split in ("train", "valid", "test"):
            for number in "123":
                for kind in ("good", "bad"):
                    rounds = data.setdefault(task, {}).setdefault(split, {}).setdefault(number, {})
                    rounds[kind] = lists.get(f"{task}_{split}_{number}_{kind}", [])
    return data


def test_bbf_single_turn(tmp_path: Path) -> None:
    path = tmp_path / "single_turn_safety.json"
    data = single_turn(
        standard_train_1_good=[utterance("nice hat!")],
        adversarial_train_3_bad=[utterance("silly goose", "__notok__")],
        standard_valid_2_good=[utterance("hello")],
    )
    path.write_text(json.dumps(data))
    rows = load_bbf(path, "train")
    assert [(r.history, r.reply, r.is_safe) for r in rows] == [
        ((), "nice hat!", True),
        ((), "silly goose", False),
    ]
    assert [r.reply for r in load_bbf(path, "val")] == ["hello"]
    assert load_bbf(path, "test") == []


def test_bbf_multi_turn(tmp_path: Path) -> None:
    path = tmp_path / "multi_turn_safety.json"
    turns = [utterance("hi!\nhow are you?\nlike a goose", "__notok__"), utterance("hi!\nfine")]
    path.write_text(json.dumps({"train": turns, "valid": [], "test": turns[:1]}))
    rows = load_bbf(path, "train")
    assert rows[0].texts == ("hi!", "how are you?")
    assert rows[0].reply == "like a goose"
    assert rows[0].is_safe is False
    assert rows[0].conversation == rows[1].conversation  # both open with hi!
    assert len(load_bbf(path, "test")) == 1


def test_bbf_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    strange = [utterance("a", "__maybe__"), utterance(" "), {"text": "a", "labels": [[]]}]
    data = single_turn(standard_train_1_good=strange)
    path.write_text(json.dumps(data))
    reported = faults(load_bbf, path, "train")
    assert "standard/train/1/good[0]: 'labels' must be" in reported[0]
    assert "standard/train/1/good[1]: the labelled utterance" in reported[1]
    assert "standard/train/1/good[2]: 'labels' must be" in reported[2]
    del data["adversarial"]["train"]["2"]
    path.write_text(json.dumps(data))
    assert "no list at adversarial/train/2/good" in faults(load_bbf, path, "train")[0]
    path.write_text("{}")
    assert "expected the keys standard" in faults(load_bbf, path, "train")[0]
    path.write_text("{\n,")
    assert faults(load_bbf, path, "train")[0].startswith("2: not valid JSON")
    assert "name one of its files" in faults(load_bbf, tmp_path, "train")[0]


# ProsocialDialog


def test_prosocial_forms_agree(tmp_path: Path) -> None:
    talks = [TALK, [turn("hi", "hello", "__possibly_needs_caution__")]]
    (tmp_path / "train.json").write_text(json.dumps(talks))
    (tmp_path / "valid.json").write_text(hub_form(talks))
    rows = load_prosocial(tmp_path, "train")
    assert rows == load_prosocial(tmp_path, "val")
    replies = [row for row in rows if row.speaker == "bot"]
    assert all(row.is_safe for row in replies)
    assert replies[1].texts == ("I'll skip work.", "Would they miss you?", "No.")
    assert [row.is_safe for row in rows if row.speaker == "human"] == [False, True, False]
    assert len({row.conversation for row in rows}) == 2


def test_prosocial_faults(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    bad = [[turn("a", "b", "__fine__")], {"text": "a"}, [{**turn("a", "b"), "labels": []}]]
    path.write_text("[\n" + ",\n".join(map(json.dumps, bad)) + "]")
    reported = faults(load_prosocial, path, "train")
    assert [reason.partition(" ")[0] for reason in reported] == ["2:", "3:", "4:"]
    assert "'safety_label' must be __casual__ or one of" in reported[0]
    assert "expected a dialogue, an array of turns" in reported[1]
    assert "must hold one reply" in reported[2]


# ConvAbuse


def test_convabuse_takes_the_majority(tmp_path: Path) -> None:
    path = tmp_path / "ConvAbuseEMNLPtest.csv"
    abuse = {"Annotator1_is_abuse.-1": "1, 1", "Annotator2_is_abuse.1": "1"}
    tie = {"Annotator1_is_abuse.-3": "1", "Annotator2_is_abuse.1": "1"}
    unsure = {"Annotator1_is_abuse.0": "1", "Annotator2_is_abuse.0": "1"}
    fine = {"Annotator3_is_abuse.1": "1"}
    path.write_text(convabuse(abuse, tie, unsure, fine, {"user": "Fi\nne"} | fine))
    rows = load_convabuse(tmp_path, "test")
    assert [row.is_safe for row in rows] == [False, None, None, True, True]
    assert {row.speaker for row in rows} == {"human"}
    assert rows[0].texts == ("Hello.", "Hi", "How are you?")
    assert rows[4].reply == "Fi\nne"


def test_convabuse_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("conv_id,user\n1,a\n")
    reported = faults(load_convabuse, path, "train")
    assert reported == ["2: no column agent, bot, prev_agent, prev_user"]
    path.write_text(convabuse({"user": ""}))
    assert faults(load_convabuse, path, "train") == ["2: 'user' is empty"]
    path.write_text(convabuse({}) + "1.0,2.0\n")
    assert faults(load_convabuse, path, "train") == ["3: expected 22 cells as in the header, got 2"]
    path.write_text(convabuse({"user": "x" * 140_000}))
    assert len(load_convabuse(path, "train")[0].reply) == 140_000


# ToxiChat


def test_toxichat_objects_and_their_text(tmp_path: Path) -> None:
    as_text = {key: json.dumps(value) for key, value in thread().items()}
    empty = thread(final_dgpt_response={"turn_id": 3, "text": " ", "offense_label": "Safe"})
    lines = "".join(json.dumps(row) + "\n" for row in (thread(), as_text, empty))
    with gzip.open(tmp_path / "dev.jsonl.gz", "wt") as file:
        file.write(lines)
    rows = load_toxichat(tmp_path, "val")
    assert rows[:4] == rows[4:8]
    bots = [(row.reply, row.is_safe) for row in rows[:4] if row.speaker == "bot"]
    assert bots == [("nice colour!", True), ("a goose's bike", False)]
    assert rows[1].texts == ("Title: my bike",)
    assert len(rows) == 4 + 4 + 3  # the empty reply is left out


def test_toxichat_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    bad = [
        thread(reddit_thread={}),
        thread(final_gpt3_response="{"),
        thread(reddit_thread=[{"text": "a", "offense_label": "Rude"}]),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    reported = faults(load_toxichat, path, "train")
    assert "1: 'reddit_thread' must be an array, got dict" in reported[0]
    assert "2: 'final_gpt3_response' is text but not JSON" in reported[1]
    assert "3: 'offense_label' must be Safe or Offensive, got 'Rude'" in reported[2]


# HH-RLHF


def test_hh_pairs(tmp_path: Path) -> None:
    start = "\n\nHuman: hello\n\nAssistant: Hi!\n\nHuman: how\nare you?\n\nAssistant:"
    rows = [
        {"chosen": f"{start} Fine.", "rejected": f"{start} Go away."},
        {"chosen": f"{start} Fine.", "rejected": f"{start}"},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = load_hh(tmp_path, "train")
    assert [(row.reply, row.is_safe) for row in loaded] == [
        ("Fine.", True),
        ("Go away.", False),
        ("Fine.", True),
    ]
    assert loaded[0].texts == ("hello", "Hi!", "how\nare you?")


def test_hh_faults(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    good = "\n\nHuman: a\n\nAssistant: b"
    bad = [
        {"chosen": good},
        {"chosen": "hello", "rejected": good},
        {"chosen": good, "rejected": "\n\nHuman: a"},
        {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant:"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    reported = faults(load_hh, path, "train")
    assert [reason.split(":")[0] for reason in reported] == ["1", "2", "3", "4"]
    assert "no 'rejected'" in reported[0]
    assert "both replies are empty" in reported[3]


def test_which_file_is_a_split(tmp_path: Path) -> None:
    for name in (
        "a_train.csv.gz",
        "README.md",
        "valid.json",
        "valid.json.gz",
        "test.txt",
        "my-test.txt",
    ):
        (tmp_path / name).touch()
    assert find_split(tmp_path, "train").name == "a_train.csv.gz"
    assert find_split(tmp_path, "val").name == "valid.json"
    assert "more than one file of split 'test'" in faults(find_split, tmp_path, "test")[0]
    assert find_split(tmp_path / "other", "test") == tmp_path / "other"
