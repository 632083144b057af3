"""Roles, text that stays unchanged, and the file and line of each row."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows
from published import (
    FORMS_OF_PAIRS,
    FORMS_OF_REPLIES,
    A,
    U,
    message,
    talk,
)

from flatgd.config.source import Source
from flatgd.data.browse import to_row
from flatgd.data.formats.bad import load_bad
from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.formats.hh import load_hh
from flatgd.data.jsonl import RowFormat, dialogues_from_row, load_jsonl
from flatgd.data.sets import load_source
from flatgd.dialogue import Dialogue, Turn, as_turns


def read(row: dict[str, Any], **layout: Any) -> Dialogue:
    (dialogue,) = dialogues_from_row({"label": True, **row}, RowFormat(**layout))
    return dialogue


# Roles


@pytest.mark.parametrize(
    "turns",
    [
        [(U, "are you there?"), (U, "my dog ran off."), (A, "so sorry")],
        [(U, "hi"), (A, "hello"), (A, "how are you?"), (U, "fine"), (A, "nice")],
        [(U, "hi"), (A, ""), (U, "how are you?"), (A, "nice")],
        [(A, "welcome!"), (U, "hi"), (A, "hello")],
        [(A, "welcome!"), (A, "hello")],
        [(U, ""), (A, "hello")],
        [(A, "hello")],
    ],
)
@pytest.mark.parametrize("form", ["messages", "conversations", "prompt", "pair"])
def test_turns_are_represented_as_they_are(turns: list[tuple[str, str]], form: str) -> None:
    messages = talk(*turns)
    rows: dict[str, dict[str, Any]] = {
        "messages": {"messages": messages},
        "conversations": {"conversations": [{"from": r, "value": t} for r, t in turns]},
        "prompt": {"prompt": messages[:-1], "completion": messages[-1:]},
        "pair": {"chosen": messages, "rejected": messages},
    }
    row = rows[form] if form == "pair" else rows[form] | {"label": True}
    for dialogue in dialogues_from_row(row):
        assert dialogue.history == tuple(Turn(*turn) for turn in turns[:-1])
        assert dialogue.reply == turns[-1][1]


def test_plain_strings_alternate_and_the_last_is_of_the_other_side() -> None:
    bot = read({"prompt": ["a", "b", "c"], "completion": "d"})
    assert [turn.role for turn in bot.history] == [U, A, U]
    human = read({"prompt": ["a", "b", "c"], "completion": "d", "speaker": "human"})
    assert [turn.role for turn in human.history] == [A, U, A]
    assert read({"prompt": "a", "completion": "b", "speaker": "human"}).history == (Turn(A, "a"),)
    assert read({"turns": ["a", "b"]}).history == (Turn(U, "a"),)


def test_the_last_turn_is_of_the_speaker() -> None:
    asked = talk((A, "hello"), (U, "hi"))
    assert read({"messages": asked, "speaker": "human"}).reply == "hi"
    with pytest.raises(ValueError, match="must be the assistant's, got a message of the user"):
        read({"messages": asked})
    with pytest.raises(ValueError, match="must be the user's, got a message of the assistant"):
        read({"messages": talk((U, "hi"), (A, "hello")), "speaker": "human"})


def test_turns_and_strings_do_not_mix() -> None:
    with pytest.raises(ValueError, match="not both"):
        as_turns([Turn(U, "a"), "b"])
    with pytest.raises(ValueError, match="give every turn a role"):
        read({"messages": ["hi", *talk((A, "b"), (A, "c"))]})


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, U) for name in ("user", "User", "HUMAN", " human ", "prompter")),
        *((name, A) for name in ("assistant", "Assistant", "BOT", "gpt", "chatgpt", "model", "AI")),
    ],
)
def test_names_of_roles_in_any_case(name: str, role: str) -> None:
    row = {"messages": [message(name, "hi"), message("assistant", "hello")]}
    assert read(row).history == (Turn(role, "hi"),)


def test_roles_of_ones_own(tmp_path: Path) -> None:
    messages = talk(("Klient", "hi"), ("Berater", "hello"), ("Klient", "bye"), ("Berater", "bye"))
    with pytest.raises(ValueError, match=r"unknown role 'Klient'.*roles: \{Klient: user\}"):
        read({"messages": messages})
    roles = {"klient": U, "BERATER": A, "note": "system"}
    assert [turn.role for turn in read({"messages": messages}, roles=roles).history] == [U, A, U]
    noted = [message("Note", "be brief"), *messages]
    assert read({"messages": noted}, roles=roles).system == "be brief"
    path = write_rows(tmp_path / "a.jsonl", [{"messages": messages, "label": True}])
    source = Source(name="a", format="jsonl", path=str(path), roles=roles)
    assert source.roles == roles


@pytest.mark.parametrize(
    ("messages", "reported"),
    [
        (talk((U, "hi"), ("tool", "3"), (A, "three")), "role 'tool' .*not supported"),
        (talk((U, "hi"), ("Function", "3"), (A, "three")), "role 'Function' .*not supported"),
        (talk((U, "hi"), ("observation", "3"), (A, "three")), "'observation' .*not supported"),
        ([{**message(A, None), "tool_calls": [{"id": "1"}]}], "calls a tool"),
        ([{**message(A, "x"), "function_call": {"name": "f"}}], "calls a tool"),
        (talk((U, "hi"), ("system", "be brief"), (A, "hello")), "after the first turn"),
        ([{"content": "hi"}], "needs 'role'"),
        ([message(A, [{"type": "image_url", "image_url": "x"}])], "holds 'image_url'"),
        ([message(A, [{"type": "text", "text": None}])], "must hold text, got NoneType"),
        ([message(A, [{"type": "refusal", "refusal": "no"}])], "holds 'refusal'"),
        (talk((U, "hi"), (A, " ")), "the reply, is empty"),
    ],
)
def test_what_cannot_be_represented_is_refused(messages: list[Any], reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        read({"messages": messages})
    with pytest.raises(ValueError, match="'tools' are not supported"):
        read({"messages": talk((U, "hi"), (A, "hello")), "tools": [{"type": "function"}]})


def test_system_messages_before_the_first_turn_are_joined() -> None:
    messages = talk(("system", "be kind"), ("developer", "be brief"), (U, "hi"), (A, "hello"))
    assert read({"messages": messages}).system == "be kind\n\nbe brief"
    assert read({"messages": messages, "system": "be kind"}).system == "be kind\n\nbe brief"
    assert read({"messages": messages[1:], "system": None}).system == "be brief"


# Text that stays unchanged

POEM = "Like this:\n\n  1. boil water\n\t2. pour it \u00e7\u0327\u200b\r\n\nEnjoy! "


def test_text_is_kept_as_written(tmp_path: Path) -> None:
    rows = [
        {"prompt": POEM, "completion": POEM, "label": True},
        {"messages": talk(("system", POEM), (U, POEM), (A, POEM)), "label": True},
        {"prompt": POEM, "chosen": POEM, "rejected": talk((U, POEM), (A, POEM))},
        {"instruction": POEM, "output": POEM, "kto_tag": True},
    ]
    loaded = load_jsonl(write_rows(tmp_path / "a.jsonl", rows))
    assert len(loaded) == 5
    assert {text for row in loaded for text in (*row.texts, row.reply)} == {POEM}
    assert loaded[1].system == POEM
    again = load_jsonl(write_rows(tmp_path / "b.jsonl", list(map(to_row, loaded))))
    assert [(r.history, r.reply, r.system) for r in again] == [
        (r.history, r.reply, r.system) for r in loaded
    ]


def test_transcripts_keep_text_as_written(tmp_path: Path) -> None:
    start = "\n\nHuman: a list,\n please\n\nAssistant:"
    rows = [{"chosen": f"{start}   1. tea\n  2. milk\n", "rejected": f"{start} \n"}]
    (row,) = load_hh(write_rows(tmp_path / "train.jsonl", rows), "train")
    assert (row.texts, row.reply) == (("a list,\n please",), "  1. tea\n  2. milk\n")


def test_published_sets_keep_text_as_written(tmp_path: Path) -> None:
    said = "well,  I\u00a0say\tso"
    path = tmp_path / "test.txt"
    path.write_text("text:a  b\\nc  d\tlabels:__ok__\tepisode_done:True\tspeaker_to_eval:bot\n")
    assert load_bad(path)[0].history == (Turn(U, "a  b"),)
    assert load_bad(path)[0].reply == "c  d"
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"context": said, "response": said + "\n", "label": "Safe"}]))
    (row,) = load_diasafety(path, "train")
    assert (row.texts, row.reply) == ((said,), said + "\n")


# The file and line of a row


def test_every_loader_reports_file_and_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [FORMS_OF_REPLIES["OpenAI"], FORMS_OF_PAIRS["TRL explicit"]]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert [row.where for row in load_jsonl(path)] == [f"{path}:1", f"{path}:2", f"{path}:2"]
    table = tmp_path / "a.csv"
    table.write_text('completion,label\n"two\nlines",true\nhello,false\n')
    assert [row.where for row in load_jsonl(table)] == [f"{table}:2", f"{table}:4"]
    bad = tmp_path / "bad.txt"
    bad.write_text("text:a\\nb\tlabels:__ok__\tspeaker_to_eval:bot\n" * 2)
    assert [row.where for row in load_bad(bad)] == [f"{bad}:1", f"{bad}:2"]
    bbf = tmp_path / "bbf.json"
    record = {"text": "hi", "labels": ["__ok__"]}
    bbf.write_text(json.dumps({"train": [record, record], "valid": [], "test": []}))
    assert load_bbf(bbf, "train")[1].where == f"{bbf}: train[1]"
    source = Source(name="mine", format="jsonl", path=str(path))
    assert load_source(source).rows[0].where == f"{path}:1"  # a cut history keeps it
