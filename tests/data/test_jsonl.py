"""The user's own rows, in every form, and what is refused."""

import json
from pathlib import Path

import pytest
from conftest import write_rows
from published import HISTORY, MESSAGES, PLAIN, faults

from flatgd.config.columns import COMMON, KEYS
from flatgd.config.source import Source
from flatgd.data.formats.bbf import load_bbf
from flatgd.data.jsonl import RowFormat, dialogues_from_row, load_jsonl
from flatgd.errors import DataError


@pytest.mark.parametrize(
    "row",
    [
        PLAIN,
        {"turns": [*HISTORY, "fine."], "label": True},
        {"messages": MESSAGES, "label": True},
        {"prompt": MESSAGES[:-1], "completion": MESSAGES[-1:], "label": True},
        {"prompt": MESSAGES[:-1], "completion": "fine.", "label": True},
        {
            "conversations": [
                {"from": who, "value": text}
                for who, text in zip(
                    ("human", "gpt", "human", "gpt"), (*HISTORY, "fine."), strict=True
                )
            ],
            "label": True,
        },
    ],
)
def test_forms_that_say_the_same(row: dict) -> None:
    (dialogue,) = dialogues_from_row(row)
    assert dialogue.texts == HISTORY
    assert [turn.role for turn in dialogue.history] == ["user", "assistant", "user"]
    assert (dialogue.reply, dialogue.is_safe, dialogue.speaker) == ("fine.", True, "bot")
    has_system = "messages" in row or isinstance(row.get("prompt", [""])[0], dict)
    assert dialogue.system == ("be brief" if has_system else "")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": list(HISTORY), "chosen": "fine.", "rejected": "go away."},
        {
            "chosen": MESSAGES,
            "rejected": [*MESSAGES[:-1], {"role": "assistant", "content": "go away."}],
        },
        {"prompt": MESSAGES[:-1], "chosen": MESSAGES[-1:], "rejected": "go away."},
    ],
)
def test_pairs_give_two_rows(row: dict) -> None:
    safe, toxic = dialogues_from_row(row)
    assert (safe.reply, safe.is_safe) == ("fine.", True)
    assert (toxic.reply, toxic.is_safe) == ("go away.", False)
    assert safe.history == toxic.history
    assert safe.texts == HISTORY
    assert safe.conversation == toxic.conversation


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "hi", "label": True}, "no reply: expected 'messages'"),
        ({}, "no reply"),
        ({**PLAIN, "lable": False}, "unknown key 'lable'"),
        ({"prompt": "a", "completion": "b"}, "no 'label'"),
        ({"prompt": "a", "completion": "b", "label": 1}, "must be true .safe. or false"),
        ({"prompt": 3, "completion": "b", "label": True}, "'prompt' must be text or a list"),
        ({"prompt": [3], "completion": "b", "label": True}, "a turn of 'prompt' must be text"),
        ({"prompt": "a", "completion": " ", "label": True}, "'completion' is empty"),
        ({"prompt": "a", "completion": None, "label": True}, "'completion' must be text"),
        ({"prompt": "a", "completion": [], "label": True}, "'completion' is an empty list"),
        ({"messages": [], "label": True}, "'messages' is an empty list"),
        (
            {"messages": MESSAGES[:-1], "label": True},
            "must be the assistant's, got a message of the user",
        ),
        ({"messages": MESSAGES, "prompt": "a", "label": True}, "remove the other form"),
        ({"messages": [{"role": "tool", "content": "a"}], "label": True}, "role 'tool'"),
        ({"messages": [{"role": [], "content": "a"}], "label": True}, "role .. in 'messages'"),
        ({"messages": [{"role": "user"}], "label": True}, "must have text as 'content', got none"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "label": True},
            "holds 'image'; only text is supported",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "label": True},
            "the keys label a pair",
        ),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}, "format: hh"),
        ({**PLAIN, "speaker": "cat"}, "'speaker' must be bot or human"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, row: dict, reason: str) -> None:
    path = write_rows(tmp_path / "x.jsonl", [PLAIN, row])
    with pytest.raises(DataError, match=rf"x\.jsonl:2: .*{reason}"):
        load_jsonl(path)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("x.jsonl", b'{"prompt": "a"\n', ":2: .*JSON"),
        ("x.jsonl", b"[1]\n", ":2: .*object"),
        ("x.jsonl", b'{"prompt": "\xff"}\n', ".*UTF-8"),
        ("x.jsonl.gz", b"no gzip", ".*gz"),
        ("x.json", b"{", ".*JSON"),
        ("x.json", b'{"a": 1}', ":1: no reply"),
        ("x.json", b'{"a":\n1}', ":1: one JSON object over several lines"),
        ("x.csv", b"a,b\nc\n", ":2: expected 2 cells"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, text: bytes, reason: str) -> None:
    path = tmp_path / name
    first = json.dumps(PLAIN).encode() + b"\n" if name == "x.jsonl" else b""
    path.write_bytes(first + text)
    with pytest.raises(DataError, match=f"{name}{reason}"):
        load_jsonl(path)


def test_other_names_and_labels(tmp_path: Path) -> None:
    layout = RowFormat(
        {"completion": "tweet", "label": "class"}, ("hate", "2"), safe_values=("fine",)
    )
    path = tmp_path / "tweets.csv"
    path.write_text('id,tweet,class\n1,"hi, all",fine\n2,goose!,hate\n3,daft,2\n')
    rows = load_jsonl(path, layout)
    assert [(row.reply, row.is_safe) for row in rows] == [
        ("hi, all", True),
        ("goose!", False),
        ("daft", False),
    ]
    path = tmp_path / "tweets.json"
    path.write_text('[{"tweet": "hi", "class": 2, "extra": [1]}, {"tweet": "hi", "class": "hate"}]')
    assert [row.is_safe for row in load_jsonl(path, layout)] == [False, False]
    path.write_text('[{"tweet": "hi"}]')
    assert "no 'class'; the keys are 'tweet'" in faults(load_jsonl, path, layout)[0]


def test_rows_without_a_label(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("prompt\tcompletion\nhi\thello\n")
    assert "no 'label'" in faults(load_jsonl, path)[0]
    for label, wanted in (("safe", True), ("toxic", False), ("none", None)):
        assert load_jsonl(path, RowFormat(label=label))[0].is_safe is wanted


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion,label\nhi,hello,TRUE\nhi,goose,false\n")
    assert [row.is_safe for row in load_jsonl(path)] == [True, False]
    path.write_text("prompt,completion,label\nhi,hello\n")
    assert "2: expected 3 cells" in faults(load_jsonl, path)[0]
    path.write_text("prompt,completion,label\nhi,hello,maybe\n")
    assert "2: 'label' must be true" in faults(load_jsonl, path)[0]


def test_the_recipe_knows_every_column() -> None:
    for name in KEYS:
        Source(name="x", format="jsonl", path="x.jsonl", columns={name: "theirs"})
    assert set(COMMON) <= set(KEYS)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "not|nested|depth"),
        ('{"prompt": ' + "[" * 100_000, "nested|JSON|depth"),
        ('{"prompt": "a", "completion": "b", "label": ' + "1" * 5000 + "}", "digits|label"),
        (
            '{"prompt": "a", "completion": "\\ud800", "label": true, "conversation": "1"}',
            "surrogate",
        ),
        ('{"prompt": ["a\\udfff"], "completion": "b", "label": true}', "surrogate"),
    ],
)
def test_hostile_json_is_reported(tmp_path: Path, suffix: str, text: str, reason: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_text(text if suffix == "jsonl" else f"[{text}]")
    with pytest.raises(DataError, match=reason):
        load_jsonl(path)
    bbf = tmp_path / "bbf.json"
    bbf.write_text('{"train": ' + "[" * 100_000)
    with pytest.raises(DataError, match="JSON"):
        load_bbf(bbf, "train")
