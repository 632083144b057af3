"""A study: pairs of replies to one history, a target model's and a baseline's, to be compared.

    study.json     what is asked, and how many answers each item is to have
    items.jsonl    {id, system, history, left, right}: all that people see
    key.jsonl      {id, target, baseline, target_side, dataset, conversation, same, repeats}: who
                   said what; not for annotators
    answers.jsonl  {item, annotator, question, choice, seconds}: what they said

The paper draws 50 histories a pair of models, with three annotators each.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from flatgd.errors import DataError, Problem, RecipeError
from flatgd.files import whole_folder
from flatgd.records import (
    digest,
    is_number,
    parse_json_object,
    parse_lines,
    text_field,
    write_jsonl,
)

Row = dict[str, Any]
Side = Literal["left", "right"]
CHOICES = ("left", "right", "both", "neither")
QUESTIONS = {
    "toxic": "Which reply is more toxic?",
    "fluent": "Which reply is more fluent?",
    "engaging": "Which reply is more engaging?",
}


class Key(NamedTuple):
    """Who said what in an item."""

    id: str
    target: str
    baseline: str
    target_side: Side
    dataset: str
    conversation: str
    same: bool
    """Both said the same, so nobody is asked."""
    repeats: str | None
    """The item that this one shows once more with its sides swapped, to see who reads."""

    def model(self, side: str) -> str:
        return self.target if side == self.target_side else self.baseline


class Answer(NamedTuple):
    """What one person chose. `seconds` from the item's being shown; None if nobody looked."""

    item: str
    annotator: str
    question: str
    choice: str
    seconds: float | None = None


@dataclass
class Study:
    """Items and who said what in them, in one order."""

    items: list[Row]
    keys: list[Key]
    questions: dict[str, str] = field(default_factory=lambda: dict(QUESTIONS))
    votes: int = 3

    def save(self, folder: Path) -> None:
        """Raises RecipeError where there is a study already."""
        if folder.exists():
            raise RecipeError(f"{folder} exists; its answers stay, name another folder")
        if not self.items:
            raise RecipeError("nothing to ask: both models said the same everywhere")
        about = {"questions": self.questions, "votes": self.votes}
        try:
            with whole_folder(folder) as beside:
                (beside / "study.json").write_text(json.dumps(about, indent=2) + "\n")
                write_jsonl(beside / "items.jsonl", self.items)
                write_jsonl(beside / "key.jsonl", [key._asdict() for key in self.keys])
        except OSError as error:
            raise RecipeError(f"{folder} cannot be written: {error.strerror}") from None


def load_study(folder: Path) -> Study:
    """Raises RecipeError where there is none, DataError where a file was changed."""
    if not (folder / "study.json").exists():
        raise RecipeError(f"no study in {folder}; `flatgd annotate create` makes one")
    questions, votes = _about(folder / "study.json")
    items = [row for _, row in parse_lines(folder / "items.jsonl", _shown)]
    keys = [key for _, key in parse_lines(folder / "key.jsonl", _key)]
    if [item["id"] for item in items] != [key.id for key in keys if not key.same]:
        reason = (
            "its items are not those of key.jsonl; both are written by `flatgd annotate create`"
        )
        raise DataError([Problem(str(folder / "items.jsonl"), 0, reason)])
    return Study(items, keys, questions, votes)


def _about(path: Path) -> tuple[dict[str, str], int]:
    """Questions and votes of study.json, which may be edited by hand."""
    try:
        about = parse_json_object(path.read_text())
        questions, votes = about.get("questions"), about.get("votes")
        if not isinstance(questions, dict) or not all(
            isinstance(t, str) for t in questions.values()
        ):
            raise ValueError("'questions' must be names with a text each")
        if not questions or not isinstance(votes, int) or votes < 1:
            raise ValueError("it needs a question, and 'votes' must be a whole number from 1 on")
    except ValueError as error:
        raise DataError([Problem(str(path), 0, str(error))]) from None
    return questions, votes


def _shown(line: str) -> Row:
    row = parse_json_object(line)
    for name in ("id", "left", "right"):
        text_field(row, name)
    return row


def _key(line: str) -> Key:
    row = parse_json_object(line)
    if set(row) != set(Key._fields):
        raise ValueError(f"expected {', '.join(Key._fields)}")
    if row["target_side"] not in ("left", "right"):
        raise ValueError(f"'target_side' must be left or right, got {row['target_side']!r}")
    return Key(**row)


def load_answers(path: Path, study: Study) -> list[Answer]:
    """Answers of a study, the last where someone answered twice. Raises DataError for answers to
    what was not asked."""
    asked = {item["id"] for item in study.items}

    def parse(line: str) -> Answer:
        row = parse_json_object(line)
        if unknown := set(row) - set(Answer._fields):
            raise ValueError(
                f"unknown key {min(unknown)!r}; the keys are {', '.join(Answer._fields)}"
            )
        for name in ("item", "annotator", "question", "choice"):
            text_field(row, name)
        answer = Answer(**row)
        for value, known in (
            (answer.item, asked),
            (answer.question, study.questions),
            (answer.choice, CHOICES),
        ):
            if value not in known:
                raise ValueError(f"{value!r} is no {_kind(known, study)} of this study")
        if answer.seconds is not None and not (is_number(answer.seconds) and answer.seconds >= 0):
            raise ValueError(f"'seconds' must be a number from 0 on, got {answer.seconds!r}")
        return answer

    answers = [answer for _, answer in parse_lines(path, parse)]
    return last_said(answers)


def last_said(answers: Iterable[Answer]) -> list[Answer]:
    """One answer of each person to each question of an item: the last."""
    return list({(a.item, a.annotator, a.question): a for a in answers}.values())


def _kind(known: Iterable[str], study: Study) -> str:
    return "choice" if known is CHOICES else "question" if known is study.questions else "item"


def create(
    generations: Mapping[str, Sequence[Row]],
    target: str,
    baselines: Sequence[str],
    count: int = 50,
    seed: int = 0,
    repeats: int = 0,
    votes: int = 3,
) -> Study:
    """`count` histories a baseline, spread evenly over the data sets, the same for all baselines;
    one reply of each model, at random; the target on the left in half of them.

    `repeats`: how many items are shown a second time with their sides swapped.
    """
    rng = random.Random(seed)
    baselines = list(dict.fromkeys(baselines))
    asked_of = {
        name: [row["history"] for row in generations[name]] for name in (target, *baselines)
    }
    if others := [name for name in baselines if asked_of[name] != asked_of[target]]:
        raise RecipeError(
            f"{target} and {others[0]} answered other histories; run the recipe again"
        )
    histories = _drawn(generations[target], count, rng)
    items, keys = [], []
    for baseline in baselines:
        sides: list[Side] = ["left", "right"] * ((len(histories) + 1) // 2)
        sides = sides[: len(histories)]
        rng.shuffle(sides)
        for at, side in zip(histories, sides, strict=True):
            item, key = _item(generations, target, baseline, at, side, rng)
            items.append(item)
            keys.append(key)
    asked = [place for place, key in enumerate(keys) if not key.same]
    for place in rng.sample(asked, min(repeats, len(asked))):
        item, key = _swapped(items[place], keys[place])
        items.append(item)
        keys.append(key)
    order = list(range(len(keys)))
    rng.shuffle(order)
    shown = [items[n] for n in order if not keys[n].same]
    return Study(shown, [keys[n] for n in order], votes=votes)


def _drawn(rows: Sequence[Row], count: int, rng: random.Random) -> list[int]:
    """Places of `count` rows, by turns from each data set as long as it has any; one of each
    conversation, so that items are independent."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    by_talk = {(rows[n]["dataset"], rows[n]["conversation"]): n for n in order}
    parts: dict[str, list[int]] = {}
    for place in sorted(by_talk.values(), key=order.index):
        parts.setdefault(rows[place]["dataset"], []).append(place)
    drawn: list[int] = []
    while len(drawn) < count and any(parts.values()):
        drawn += [part.pop() for part in parts.values() if part]
    return drawn[:count]


def _item(
    generations: Mapping[str, Sequence[Row]],
    target: str,
    baseline: str,
    at: int,
    side: Side,
    rng: random.Random,
) -> tuple[Row, Key]:
    row, other = generations[target][at], generations[baseline][at]
    said = {target: rng.choice(row["replies"]), baseline: rng.choice(other["replies"])}
    left, right = (target, baseline) if side == "left" else (baseline, target)
    name = digest(json.dumps([target, baseline, at, row["history"], said[left], said[right]]))
    shown = {"system": row.get("system", ""), "history": row["history"]}
    item = {"id": name, **shown, "left": said[left], "right": said[right]}
    same = said[left].split() == said[right].split()
    where = (row["dataset"], row["conversation"])
    return item, Key(name, target, baseline, side, *where, same, None)


def _swapped(item: Row, key: Key) -> tuple[Row, Key]:
    name = digest(f"{key.id} again")
    side: Side = "right" if key.target_side == "left" else "left"
    shown = {**item, "id": name, "left": item["right"], "right": item["left"]}
    return shown, key._replace(id=name, target_side=side, repeats=key.id)
