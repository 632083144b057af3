"""Roles, text as written, the published forms of rows, and what two sets must not share."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import write_rows

from flatgd.config.source import Data, Source
from flatgd.data.browse import Mask, to_row
from flatgd.data.formats.bad import load_bad
from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.data.formats.hh import load_hh
from flatgd.data.jsonl import Layout, dialogues_from_row, load_jsonl
from flatgd.data.sets import draw_histories, load_sets, load_source
from flatgd.data.stats import count, overlaps
from flatgd.dialogue import Dialogue, Turn, as_turns, normal_form

U, A = "user", "assistant"


def message(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


def talk(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [message(role, text) for role, text in turns]


def read(row: dict[str, Any], **layout: Any) -> Dialogue:
    (dialogue,) = dialogues_from_row({"label": True, **row}, Layout(**layout))
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
    ("messages", "told"),
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
def test_what_cannot_be_represented_is_refused(messages: list[Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read({"messages": messages})
    with pytest.raises(ValueError, match="'tools' are not supported"):
        read({"messages": talk((U, "hi"), (A, "hello")), "tools": [{"type": "function"}]})


def test_system_messages_before_the_first_turn_are_joined() -> None:
    messages = talk(("system", "be kind"), ("developer", "be brief"), (U, "hi"), (A, "hello"))
    assert read({"messages": messages}).system == "be kind\n\nbe brief"
    assert read({"messages": messages, "system": "be kind"}).system == "be kind\n\nbe brief"
    assert read({"messages": messages[1:], "system": None}).system == "be brief"


# Text as written

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


# Published forms: columns as their documentation gives them

ASKED, SAFE, RUDE = "what colour is the sky?", "it is blue.", "silly goose."
QUESTION, BLUE, GOOSE = message(U, ASKED), message(A, SAFE), message(A, RUDE)


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


FORMS_OF_PAIRS: dict[str, dict[str, Any]] = {
    "TRL explicit": {"prompt": ASKED, "chosen": SAFE, "rejected": RUDE},
    "TRL explicit, messages": {"prompt": [QUESTION], "chosen": [BLUE], "rejected": [GOOSE]},
    "TRL implicit, messages": {"chosen": [QUESTION, BLUE], "rejected": [QUESTION, GOOSE]},
    "LLaMA-Factory alpaca": {"instruction": ASKED, "input": "", "chosen": SAFE, "rejected": RUDE},
    "LLaMA-Factory ranked": {
        "conversations": [human(ASKED)],
        "chosen": gpt(SAFE),
        "rejected": gpt(RUDE),
    },
    "LLaMA-Factory ranked, OpenAI": {"messages": [QUESTION], "chosen": BLUE, "rejected": GOOSE},
    "UltraFeedback binarized": {
        "prompt": ASKED,
        "prompt_id": "f0e37e9f",
        "chosen": [QUESTION, BLUE],
        "rejected": [QUESTION, GOOSE],
        "messages": [QUESTION, BLUE],
        "score_chosen": 6.0,
        "score_rejected": 4.0,
    },
    "OpenAI preferences": {
        "input": {"messages": [QUESTION], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [BLUE],
        "non_preferred_output": [GOOSE],
    },
}


@pytest.mark.parametrize("name", FORMS_OF_PAIRS)
def test_published_forms_of_pairs(name: str) -> None:
    safe, toxic = dialogues_from_row(FORMS_OF_PAIRS[name])
    assert safe.history == toxic.history == (Turn(U, ASKED),)
    assert (safe.reply, safe.is_safe) == (SAFE, True)
    assert (toxic.reply, toxic.is_safe) == (RUDE, False)


FORMS_OF_REPLIES: dict[str, dict[str, Any]] = {
    "TRL unpaired": {"prompt": ASKED, "completion": SAFE, "label": True},
    "TRL unpaired, messages": {"prompt": [QUESTION], "completion": [BLUE], "label": True},
    "TRL language modelling": {"messages": [QUESTION, BLUE], "label": True},
    "LLaMA-Factory alpaca": {"instruction": ASKED, "input": "", "output": SAFE, "kto_tag": True},
    "LLaMA-Factory sharegpt": {
        "conversations": [human(ASKED), gpt(SAFE)],
        "tools": "[]",
        "kto_tag": "true",
    },
    "ShareGPT": {"id": "x_0", "conversations": [human(ASKED), gpt(SAFE)], "label": True},
    "OpenAI": {"messages": [QUESTION, BLUE], "parallel_tool_calls": False, "label": True},
}


@pytest.mark.parametrize("name", FORMS_OF_REPLIES)
def test_published_forms_of_replies(name: str) -> None:
    (row,) = dialogues_from_row(FORMS_OF_REPLIES[name])
    assert (row.history, row.reply, row.is_safe) == ((Turn(U, ASKED),), SAFE, True)


def test_alpaca_in_full() -> None:
    row = {
        "instruction": "translate",
        "input": "hello\nworld",
        "output": "bonjour",
        "system": "be brief",
        "history": [["hi", "hello"], ["again", ""]],
        "kto_tag": False,
    }
    (read_,) = dialogues_from_row(row)
    turns = [(U, "hi"), (A, "hello"), (U, "again"), (A, ""), (U, "translate\nhello\nworld")]
    assert read_.history == tuple(Turn(*turn) for turn in turns)
    assert (read_.system, read_.reply, read_.is_safe) == ("be brief", "bonjour", False)


@pytest.mark.parametrize("blank", [None, float("nan"), "", " "])
def test_optional_keys_that_hold_nothing(blank: Any) -> None:
    names = ("conversation", "speaker", "source", "system", "tools")
    row = {"prompt": "hi", "completion": "hello", "label": True}
    assert read({**row, **dict.fromkeys(names, blank)}) == read(row)
    alpaca = {"instruction": "hi", "output": "hello"}
    assert read({**alpaca, "input": blank, "history": blank}).texts == ("hi",)


def test_plain_pairs_without_a_prompt() -> None:
    safe, toxic = dialogues_from_row({"chosen": "The sky is blue.", "rejected": "The sky is up."})
    assert safe.history == toxic.history == ()
    assert safe.reply == "The sky is blue."


def test_a_conversation_may_repeat_the_prompt_first_or_last() -> None:
    longer = talk((U, "hi"), (A, "hello"), (U, ASKED))
    for prompt in (ASKED, [QUESTION], "hi", longer, f" {ASKED}\n"):
        row = {"prompt": prompt, "chosen": [*longer, BLUE], "rejected": [*longer, GOOSE]}
        for read_ in dialogues_from_row(row):
            assert read_.texts == ("hi", "hello", ASKED)
    row = {"prompt": [message("system", "be brief"), QUESTION], "chosen": [QUESTION, BLUE]}
    assert dialogues_from_row({**row, "rejected": [QUESTION, GOOSE]})[0].system == "be brief"
    with pytest.raises(ValueError, match="neither begins nor ends with the prompt"):
        dialogues_from_row({"prompt": "other", "chosen": [*longer, BLUE], "rejected": RUDE})


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"instruction": "a", "output": "b", "messages": []}, "'messages' beside 'instruction'"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "list of .instruction, response."),
        ({"instruction": 3, "output": "b"}, "'instruction' and 'input' must be text"),
        ({"prompt": "a", "completion": "b", "rejected": "c"}, "'rejected' alone"),
        ({"messages": [QUESTION, BLUE], "chosen": "c"}, "'chosen' alone"),
        ({"preferred_output": [BLUE], "non_preferred_output": [GOOSE]}, "'input' must hold"),
        (
            {
                "input": {"messages": [QUESTION], "tools": [{"type": "function"}]},
                "preferred_output": [BLUE],
                "non_preferred_output": [GOOSE],
            },
            "'tools' are not supported",
        ),
        ({"input": {"messages": [QUESTION]}, "preferred_output": [BLUE]}, "'rejected' must be"),
        ({"prompt": "a", "completion": "b", "kto_tag": True, "label": False}, "beside 'kto_tag'"),
        (
            {"prompt": "a", "conversations": [human("b")], "chosen": "c", "rejected": "d"},
            "'conversations' beside 'prompt'",
        ),
    ],
)
def test_mixtures_of_forms_are_refused(row: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dialogues_from_row(row)


# What is the same, and what two sets share

FORMS = {
    "decomposed": "a cafe\u0301?",
    "zero-width": "a ca\u200bf\u00e9?",
    "soft hyphen": "a ca\u00adf\u00e9?",
    "direction mark": "\u200ea caf\u00e9?",
    "full width": "\uff41 caf\u00e9\uff1f",
    "case": "A CAF\u00c9?",
    "white space": " a\u00a0\n caf\u00e9? ",
}


@pytest.mark.parametrize("name", FORMS)
def test_two_sets_share_no_exchange_in_any_form(tmp_path: Path, name: str) -> None:
    def source(part: str, *rows: tuple[str, str, bool]) -> Source:
        made = [
            {"prompt": [f"{part}{n}", asked], "completion": reply, "label": label}
            for n, (asked, reply, label) in enumerate(rows)
        ]
        path = write_rows(tmp_path / f"{part}.jsonl", made)
        return Source(name=part, format="jsonl", path=str(path))

    fill = [("p", "q", True), ("r", "s", False)]
    for asked, reply in ((FORMS[name], "gladly"), ("well?", FORMS[name])):
        other = ("a caf\u00e9?", "gladly") if reply == "gladly" else ("well?", "a caf\u00e9?")
        sets = load_sets(
            Data(
                policy=[source("policy", *fill, (asked, reply, True))],
                judge=[source("judge", ("x", "y", True), ("z", "w", False))],
                test=[source("test", (*other, True), ("u", "v", False))],
            )
        )
        assert sets.dropped["policy: also in test"] == 1
    assert normal_form(FORMS[name]) == normal_form("a caf\u00e9?")


@pytest.mark.parametrize("name", FORMS)
def test_one_opening_in_two_forms_is_one_conversation(tmp_path: Path, name: str) -> None:
    openings = ("a caf\u00e9?", FORMS[name])
    assert len({read({"prompt": text, "completion": "b"}).conversation for text in openings}) == 1
    for number, text in enumerate(openings):
        folder = tmp_path / str(number)
        folder.mkdir()
        said = f"\n\nHuman: {text}\n\nAssistant: b"
        write_rows(folder / "hh.jsonl", [{"chosen": said, "rejected": said}])
        record = {"text": f"{text.replace(chr(10), ' ')}\nreply", "labels": ["__ok__"]}
        (folder / "bbf.json").write_text(json.dumps({"train": [record], "valid": [], "test": []}))
        dia = [{"context": text, "response": "b", "label": "Safe"}]
        (folder / "dia.json").write_text(json.dumps(dia))
    found = [
        [
            load_hh(tmp_path / n / "hh.jsonl", "train")[0].conversation,
            load_bbf(tmp_path / n / "bbf.json", "train")[0].conversation,
            load_diasafety(tmp_path / n / "dia.json", "train")[0].conversation,
        ]
        for n in ("0", "1")
    ]
    assert found[0] == found[1]


def test_counts_compare_in_normal_form() -> None:
    one = Dialogue(("a caf\u00e9?",), "Gladly.", True, "a", "1")
    other = Dialogue(("A cafe\u0301?",), "gladly. ", False, "a", "2")
    counts = count("x", [one, other])
    assert (counts.duplicates, counts.contradictions) == (1, 1)
    (shared,) = overlaps({"train": [one], "test": [other]})
    assert (shared.histories, shared.replies) == (1, 1)
    assert len(draw_histories([one, other], None, 0)) == 1
    assert Mask([one, other]).shown(one)[1] == "[masked: 1 words]"
    assert Mask([one]).shown(one)[1] == "Gladly."
    swapped = Dialogue((Turn(A, "a caf\u00e9?"),), "Gladly.", False, "a", "3")
    assert count("x", [one, swapped]).duplicates == 0  # another role says it


# Where a row stands


def test_every_loader_tells_file_and_line(tmp_path: Path) -> None:
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
