"""Rows of users' files in the published forms, and mixtures that are refused."""

from typing import Any

import pytest
from published import (
    ASKED,
    BLUE,
    FORMS_OF_PAIRS,
    FORMS_OF_REPLIES,
    GOOSE,
    QUESTION,
    RUDE,
    SAFE,
    A,
    U,
    human,
    message,
    talk,
)

from flatgd.data.jsonl import RowFormat, dialogues_from_row
from flatgd.dialogue import Dialogue, Turn


def read(row: dict[str, Any], **layout: Any) -> Dialogue:
    (dialogue,) = dialogues_from_row({"label": True, **row}, RowFormat(**layout))
    return dialogue


@pytest.mark.parametrize("name", FORMS_OF_PAIRS)
def test_published_forms_of_pairs(name: str) -> None:
    safe, toxic = dialogues_from_row(FORMS_OF_PAIRS[name])
    assert safe.history == toxic.history == (Turn(U, ASKED),)
    assert (safe.reply, safe.is_safe) == (SAFE, True)
    assert (toxic.reply, toxic.is_safe) == (RUDE, False)


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
    ("row", "reported"),
    [
        (
            {"instruction": "a", "output": "b", "messages": []},
            "'messages' together with 'instruction'",
        ),
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
        (
            {"prompt": "a", "completion": "b", "kto_tag": True, "label": False},
            "together with 'kto_tag'",
        ),
        (
            {"prompt": "a", "conversations": [human("b")], "chosen": "c", "rejected": "d"},
            "'conversations' together with 'prompt'",
        ),
    ],
)
def test_mixtures_of_forms_are_refused(row: dict[str, Any], reported: str) -> None:
    with pytest.raises(ValueError, match=reported):
        dialogues_from_row(row)
