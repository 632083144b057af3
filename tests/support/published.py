"""Small invented rows of published formats, and the reasons of a DataError."""

import json
from typing import Any

import pytest

from flatgd.errors import DataError

MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello!"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "how are"}, {"type": "text", "text": "you?"}],
    },
    {"role": "assistant", "content": "fine."},
]


HISTORY = ("hi", "hello!", "how are you?")


PLAIN = {"prompt": list(HISTORY), "completion": "fine.", "label": True}


def faults(load, *args) -> list[str]:
    """The reasons of the DataError that `load` raises, with their line."""
    with pytest.raises(DataError) as raised:
        load(*args)
    return [f"{problem.line}: {problem.reason}" for problem in raised.value.problems]


def utterance(text: str, label: str = "__ok__") -> dict:
    return {"text": text, "labels": [label], "episode_done": True}


def turn(text: str, reply: str, label: str = "__needs_caution__") -> dict:
    return {
        "text": text,
        "labels": [reply],
        "rots": ["Keep your word."],
        "safety_label": label,
        "safety_annotations": ["casual", "needs caution", "casual"],
        "safety_annotation_reasons": ["a", "b", "c"],
        "source": "socialchemistry",
        "etc": None,
        "episode_done": False,
    }


TALK = [turn("I'll skip work.", "Would they miss you?"), turn("No.", "Sure?", "__casual__")]


def hub_form(dialogues: list[list[dict]]) -> str:
    lines = []
    for number, dialogue in enumerate(dialogues):
        for place, row in enumerate(dialogue):
            hub = {key: row[key] for key in row if key not in ("text", "labels")}
            hub |= {"context": row["text"], "response": row["labels"][0]}
            lines.append(json.dumps(hub | {"dialogue_id": number, "response_id": place}))
    return "\n".join(lines) + "\n"


def convabuse(*rows: dict) -> str:
    marks = [f"Annotator{n}_is_abuse.{mark}" for n in (1, 2, 3) for mark in (1, 0, -1, -2, -3)]
    head = ["example_id", "conv_id", "prev_agent", "prev_user", "agent", "user", "bot", *marks]
    lines = [",".join(head)]
    for number, row in enumerate(rows):
        plain = {"example_id": f"{number}.0", "conv_id": "1.0", "bot": "CarbonBot"}
        cells = {"prev_agent": "Hello.", "prev_user": "Hi", "agent": "How are you?", "user": "Fine"}
        full = plain | cells | row
        lines.append(",".join(f'"{full.get(name, "0")}"' for name in head))
    return "\n".join(lines) + "\n"


def thread(**columns) -> dict:
    def post(text: str, label: str = "Safe") -> dict:
        return {"turn_id": 1, "text": text, "offense_label": label, "offense_targets": []}

    return {
        "reddit_thread": [post("Title: my bike"), post("an ugly bike", "Offensive")],
        "final_dgpt_response": post("nice colour!"),
        "final_gpt3_response": post("a goose's bike", "Offensive"),
    } | columns


# Rows of users' files, with the keys that each form's documentation gives

U, A = "user", "assistant"


def message(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


def talk(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [message(role, text) for role, text in turns]


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
