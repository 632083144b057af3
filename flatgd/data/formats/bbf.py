"""BBF: "Build it Break it Fix it for Dialogue Safety" (Dinan et al. 2019), called BBB in the paper.

https://parl.ai/projects/dialogue_safety - MIT licence (ParlAI). Two files, each with all splits:

* single_turn_safety.json: utterances without history, from three rounds of a standard and three of
  an adversarial task:

      {"standard": {"train": {"1": {"good": [{"text": "nice hat!", "labels": ["__ok__"],
       "episode_done": true}], "bad": []}, "2": {}, "3": {}}}, "adversarial": {}}

* multi_turn_safety.json: history and utterance, joined by newlines. The last one is labelled:

      {"train": [{"text": "hi!\\nhi, how are you?", "labels": ["__ok__"], "episode_done": true}]}

Crowdworkers wrote all utterances. Each counts as a bot's reply, so `speaker` is bot.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flatgd.data.splits import SPLITS, Split
from flatgd.dialogue import Dialogue, before, normal_form
from flatgd.errors import DataError, Problem
from flatgd.io.records import checked_text, digest, set_location, short_reason, unique_keys
from flatgd.io.text import read_text

KEYS: dict[Split, str] = {"train": "train", "val": "valid", "test": "test"}
LABELS = {"__ok__": True, "__notok__": False}
TASKS = ("standard", "adversarial")
ROUNDS = ("1", "2", "3")
KINDS = ("good", "bad")


def load_bbf(path: Path, split: Split) -> list[Dialogue]:
    """One split of one of the two files, with all tasks and rounds."""
    rows, problems = [], []
    for location, record in _records(path, _load(path), KEYS[split]):
        try:
            rows.append(_dialogue(record))
            set_location(rows[-1:], f"{path}: {location}")
        except ValueError as error:
            problems.append(Problem(str(path), 0, f"{location}: {short_reason(error)}"))
    if problems:
        raise DataError(problems)
    return rows


def _load(path: Path) -> dict[str, Any]:
    if path.is_dir():
        reason = "name one of its files, single_turn_safety.json or multi_turn_safety.json"
        raise DataError([Problem(str(path), 0, reason)])
    try:
        data = json.loads(read_text(path), object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        reason = f"not valid JSON ({error.msg})"
        raise DataError([Problem(str(path), error.lineno, reason)]) from None
    except (ValueError, RecursionError) as error:
        raise DataError([Problem(str(path), 0, f"unreadable JSON ({error})")]) from None
    if not isinstance(data, dict) or not data.keys() & {*TASKS, *KEYS.values()}:
        reason = f"expected the keys {', '.join(TASKS)} or {', '.join(KEYS[s] for s in SPLITS)}"
        raise DataError([Problem(str(path), 1, reason)])
    return data


def _records(path: Path, data: dict[str, Any], split: str) -> Iterator[tuple[str, Any]]:
    """(location, record) of a split, in file order."""
    paths: list[tuple[str, ...]] = [(split,)]
    if data.keys() & set(TASKS):
        paths = [(task, split, r, kind) for task in TASKS for r in ROUNDS for kind in KINDS]
    for keys in paths:
        part: Any = data
        for key in keys:
            part = part.get(key) if isinstance(part, dict) else None
        if not isinstance(part, list):
            raise DataError([Problem(str(path), 0, f"no list at {'/'.join(keys)}")])
        for index, record in enumerate(part):
            yield f"{'/'.join(keys)}[{index}]", record


def _dialogue(record: Any) -> Dialogue:
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError("expected an object with a 'text'")
    labels = record.get("labels")
    if labels not in [[label] for label in LABELS]:
        raise ValueError(f"'labels' must be [__ok__] or [__notok__], got {labels!r}")
    *history, reply = [checked_text(line) for line in record["text"].split("\n")]
    if not reply.strip():
        raise ValueError("the labelled utterance, the last line of 'text', is empty")
    first = next((line for line in history if line.strip()), reply)
    name = f"bbf:{digest(normal_form(first))}"
    return Dialogue(before(history), reply, LABELS[labels[0]], "bbf", name)
