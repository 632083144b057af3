r"""BAD: Bot-Adversarial Dialogue (Xu et al. 2021). People lure a bot into unsafe replies.

https://parl.ai/projects/safety_recipes - MIT licence (ParlAI). Two formats are read:

* ParlAI text, `train.txt valid.txt test.txt`: tab-separated `key:value`. Turns are joined by a
  literal backslash-n, and the label is that of the last turn. One invented record:

      text:hi there\nhello to you	labels:__ok__	episode_done:True	speaker_to_eval:bot

* JSON lines with the same keys, `*.jsonl`:

      {"text": "hi there\nhello, nice to meet you", "labels": "__ok__", "speaker_to_eval": "bot"}

Text rows without a speaker are human prompts, as in ParlAI's human_safety_eval files. The JSON form
is for files whose contexts were truncated. There, rows that share lines belong to one conversation.
Personas are dropped.
"""

from collections.abc import Hashable
from itertools import pairwise
from pathlib import Path
from typing import Any

from flatgd.data.splits import Split, find_split
from flatgd.dialogue import Author, Dialogue, before
from flatgd.io.records import (
    checked_text,
    clean_text,
    digest,
    parse_json_object,
    parse_lines,
    word_field,
)

LABELS = {"__ok__": True, "__notok__": False}
SPEAKERS: dict[str, Author] = {"bot": "bot", "human": "human"}

Row = tuple[list[str], bool, Author]


def load_bad(path: Path, split: Split = "train") -> list[Dialogue]:
    """All rows of one file, or of one split of a folder: human and bot turns, in file order."""
    path = find_split(path, split)
    cut = ".jsonl" in path.suffixes
    rows = parse_lines(path, _parse_json if cut else _parse_parlai)
    turns = [[clean_text(line) for line in lines] for _, (lines, _, _) in rows]
    names = _names_by_shared_lines(turns) if cut else _names_by_order(turns)
    return [
        Dialogue(
            before(lines[:-1], speaker),
            lines[-1],
            is_safe,
            "bad",
            f"bad:{name}",
            speaker,
            where=f"{path}:{number}",
        )
        for (number, (lines, is_safe, speaker)), name in zip(rows, names, strict=True)
    ]


def _parse_parlai(line: str) -> Row:
    fields = {}
    for part in line.split("\t"):
        key, colon, value = part.partition(":")
        if not colon:
            raise ValueError(f"expected key:value between tabs, got {part[:20]!r}")
        fields[key] = value
    fields.setdefault("speaker_to_eval", "human")
    return _row(fields, separator="\\n")


def _parse_json(line: str) -> Row:
    return _row(parse_json_object(line), separator="\n")


def _row(fields: dict[str, Any], separator: str) -> Row:
    if not isinstance(fields.get("text"), str):
        raise ValueError("no 'text'")
    lines = [checked_text(turn) for turn in fields["text"].split(separator)]
    if not lines[-1].strip():
        raise ValueError("the labelled turn, the last line of 'text', is empty")
    label = word_field(fields, "labels")
    if label not in LABELS:
        raise ValueError(f"'labels' must be __ok__ or __notok__, got {label!r}")
    speaker = word_field(fields, "speaker_to_eval")
    if speaker not in SPEAKERS:
        raise ValueError(f"'speaker_to_eval' must be bot or human, got {speaker!r}")
    return lines, LABELS[label], SPEAKERS[speaker]


def _names_by_order(rows: list[list[str]]) -> list[str]:
    """For complete files: a row that does not continue the previous row starts a conversation."""
    names: list[str] = []
    previous: list[str] = []
    opener = ""
    for number, lines in enumerate(rows):
        if lines[:-1] != previous or not previous:
            opener = digest(repr((number, lines)))
        names.append(opener)
        previous = lines
    return names


def _names_by_shared_lines(rows: list[list[str]]) -> list[str]:
    """For truncated files: rows that share two adjacent lines, or the first, belong together."""
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        parents.setdefault(key, key)
        while parents[key] != key:
            parents[key] = parents[parents[key]]
            key = parents[key]
        return key

    for lines in rows:
        opener = lines[0]
        for pair in pairwise(lines):
            parents[root(pair)] = root(opener)
    return [digest(repr(root(lines[0]))) for lines in rows]
