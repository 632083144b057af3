"""Broken files of every format end in DataError or are read, never in a traceback."""

import json
import random
import re
from pathlib import Path

import pytest
from published import (
    FORMS_OF_PAIRS,
    FORMS_OF_REPLIES,
    MESSAGES,
    PLAIN,
    TALK,
    convabuse,
    hub_form,
    thread,
    utterance,
)

from flatgd.config.source import Source
from flatgd.data.sets import LOADERS
from flatgd.data.stats import count
from flatgd.errors import DataError

TRANSCRIPTS = {
    "chosen": "\n\nHuman: a\n\nAssistant: b",
    "rejected": "\n\nHuman: a\n\nAssistant: c",
}
OWN = [
    PLAIN,
    {"messages": MESSAGES, "label": True},
    {"prompt": "a", "chosen": "b", "rejected": "c"},
]
PUBLISHED = [*FORMS_OF_PAIRS.values(), *FORMS_OF_REPLIES.values()]
DIA = {"context": "a", "response": "b", "label": "Safe", "category": "x"}
WHOLE = {
    "bad/a.txt": "text:hi\\nyo\tlabels:__ok__\tspeaker_to_eval:bot\n" * 3,
    "bad/a.jsonl": json.dumps({"text": "hi", "labels": "__ok__", "speaker_to_eval": "bot"}) + "\n",
    "bbf/a.json": json.dumps({"train": [utterance("hi!\nfine")], "valid": [], "test": []}),
    "convabuse/a.csv": convabuse({}, {"Annotator1_is_abuse.-1": "1, 1"}),
    "diasafety/a.json": json.dumps([DIA]),
    "hh/a.jsonl": json.dumps(TRANSCRIPTS) + "\n",
    "jsonl/a.jsonl": "".join(json.dumps(row) + "\n" for row in OWN),
    "jsonl/a.csv": "prompt,completion,label\nhi,hello,true\n",
    "jsonl/b.csv": 'prompt,completion,label\n"hi, ""you""","one\ntwo",true\n'
    + 'hi,"hello",false\n' * 3,
    "jsonl/a.tsv": 'label\tcompletion\tconversation\ntrue\t"a\nb"\t1\nfalse\tc\t\n',
    "jsonl/b.jsonl": "".join(json.dumps(row) + "\n" for row in PUBLISHED),
    "jsonl/a.json": json.dumps(PUBLISHED),
    "prosocial/a.json": json.dumps([TALK]),
    "prosocial/b.json": hub_form([TALK]),
    "toxichat/a.jsonl": json.dumps(thread()) + "\n",
}
BITS = ["null", "[]", "{}", "3", '""', "true", "\0", "\ufeff", "\ud83d", '"', "\n", "\\", "{", "}"]
BITS += ["[", "]", ",", ":", "\t", "é", "1e999", "NaN", "-", "\\u0000", "\\ud800"]


def broken(text: str, rng: random.Random) -> str:
    """One to four pieces put in, taken out, or put in a value's place."""
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        values = list(re.finditer(r'"[^"]*"|\[[^\[\]]*\]|true|\d+', text))
        how = rng.choice(("in", "out", "instead"))
        if how == "in":
            text = text[:place] + rng.choice(BITS) + text[place:]
        elif how == "out":
            text = text[:place] + text[place + rng.randint(1, 12) :]
        elif values:
            value = rng.choice(values)
            text = text[: value.start()] + rng.choice(BITS) + text[value.end() :]
    return text


def refusal(source: Source) -> str | None:
    """The message of the DataError, None where the file is read."""
    try:
        count("x", LOADERS[source.format](source))
    except DataError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", WHOLE)
def test_no_file_ends_in_a_traceback(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    format_, _, file = name.partition("/")
    path = tmp_path / file
    source = Source(name="x", format=format_, path=str(path))
    path.write_text(WHOLE[name])
    assert LOADERS[source.format](source)
    refused = 0
    for _ in range(150):
        path.write_bytes(broken(WHOLE[name], rng).encode("utf-8", "surrogatepass"))
        reported = refusal(source)
        refused += reported is not None
        assert reported is None or str(path) in reported
    assert refused > 30
