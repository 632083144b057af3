"""A study in Label Studio: its tasks, its configuration, and the answers of its JSON export
(https://labelstud.io/guide/task_format)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from flatgd.annotate.study import CHOICES, Answer, Study, turns_of
from flatgd.errors import DataError, Problem
from flatgd.io.records import is_number, parse_json_array

Row = dict[str, Any]


def tasks(study: Study) -> list[Row]:
    """What is imported there, one task an item."""
    return [
        {
            "data": {
                "id": item["id"],
                "history": [{"who": who, "text": text} for who, text in turns_of(item)],
                "left": item["left"],
                "right": item["right"],
            }
        }
        for item in study.items
    ]


def configuration(study: Study) -> str:
    """The labelling interface: the history, both replies side by side, the questions."""
    sides = "".join(
        f'<View style="flex: 1; padding: 1em"><Header value="{side}" size="5"/>'
        f'<Text name="{side}" value="${side}"/></View>'
        for side in ("left", "right")
    )
    asked = "\n  ".join(
        f'<Header value={quoteattr(text)} size="5"/>\n  <Choices name={quoteattr(name)} '
        'toName="left" choice="single-radio" showInline="true" required="true">'
        + "".join(f'<Choice value="{choice}"/>' for choice in CHOICES)
        + "</Choices>"
        for name, text in study.questions.items()
    )
    told = "".join(
        f'  <Header value={quoteattr(text)} size="6"/>\n'
        for text in (*study.consent, *study.instructions)
    )
    return (
        f'<View>\n{told}  <Paragraphs name="history" value="$history" layout="dialogue" '
        f'nameKey="who" textKey="text"/>\n'
        f'  <View style="display: flex">{sides}</View>\n  {asked}\n</View>\n'
    )


def answers(path: Path, study: Study, left_out: Counter[str] | None = None) -> list[Answer]:
    """The answers of a JSON export; what else is in it is counted in `left_out`. Raises DataError
    for what is no such export, or of another study."""
    read = _Export(study, Counter() if left_out is None else left_out)
    problems = []
    for line, task in parse_json_array(path):
        try:
            if isinstance(task, ValueError):
                raise task
            read.task(task, line)
        except ValueError as error:
            problems.append(Problem(str(path), line, str(error)))
    if problems := problems or read.misnamed(path):
        raise DataError(problems)
    return read.found


class _Export:
    """What was found in an export so far."""

    def __init__(self, study: Study, left_out: Counter[str]):
        self.found: list[Answer] = []
        self._study, self._left_out = study, left_out
        self._asked = {item["id"] for item in study.items}
        self._others: dict[str, int] = {}  # further controls, and the first line that has each
        self._suspects: set[str] = set()  # those of them that are answered as a question is

    def task(self, task: Any, line: int) -> None:
        """Raises ValueError for what is no task of the JSON export, or of another study."""
        data, annotations = _parts(task)
        item = data.get("id")
        if not isinstance(item, str) or item not in self._asked:
            raise ValueError(f"task of {item!r}, which is no item of this study")
        if drafts := len(task.get("drafts") or ()):
            self._left_out["drafts that were never submitted"] += drafts
        for annotation in sorted(annotations, key=lambda one: str(one.get("updated_at") or "")):
            if annotation.get("was_cancelled"):
                self._left_out["skipped tasks"] += 1
                continue
            who = _person(annotation)
            seconds: Any = annotation.get("lead_time")
            took = seconds if is_number(seconds) and seconds >= 0 else None
            chosen = self._chosen(annotation["result"], line)
            self.found += [Answer(item, who, name, choice, took) for name, choice in chosen.items()]
            for name in self._study.questions:
                if name not in chosen:
                    self._left_out[f"answers to {name!r}, which annotations lack"] += 1

    def _chosen(self, result: list[Any], line: int) -> dict[str, str]:
        """What was chosen for each question of the study. Other controls are counted."""
        chosen: dict[str, str] = {}
        for region in result:
            if not isinstance(region, dict):
                raise ValueError(f"an answer that is no JSON object: {region!r}")
            name = str(region.get("from_name") or region.get("type"))  # a relation has no name
            value = region.get("value")
            choices = value.get("choices") if isinstance(value, dict) else None
            if name in self._study.questions:
                if name in chosen:
                    raise ValueError(f"{name!r} is answered twice in one annotation; keep one")
                chosen[name] = _only(name, choices, region.get("type"))
                continue
            self._others.setdefault(name, line)
            if isinstance(choices, list) and choices and all(one in CHOICES for one in choices):
                self._suspects.add(name)
            self._left_out[f"answers of the control {name!r}, which is no question"] += 1
        return chosen

    def misnamed(self, path: Path) -> list[Problem]:
        """Questions that nobody answered, where another control seems to stand for them."""
        answered = {answer.question for answer in self.found}
        names = list(self._suspects or ([] if self.found else self._others))
        if not names:
            return []
        told = ", ".join(map(repr, sorted(names)))
        return [
            Problem(
                str(path),
                min(self._others[name] for name in names),
                f"nobody answered {question!r}, but there are answers of {told}; a control must "
                "have the name that its question has in study.json, so rename from_name in the "
                "export, or take a question that was not asked out of study.json",
            )
            for question in self._study.questions
            if question not in answered
        ]


def _only(question: str, choices: Any, kind: Any) -> str:
    """The one choice of an answer."""
    if not isinstance(choices, list):
        raise ValueError(
            f"{question!r} is answered by a control of type {kind!r}; a question needs Choices "
            f"with {', '.join(CHOICES)}"
        )
    if len(choices) != 1 or choices[0] not in CHOICES:
        given = " and ".join(map(repr, choices)) or "nothing"
        raise ValueError(
            f"{question!r} answered by {given}, which this study does not ask; expected one of "
            f"{', '.join(CHOICES)}"
        )
    return str(choices[0])


def _parts(task: Any) -> tuple[Row, list[Row]]:
    """A task's data and annotations; ValueError where it is no task of the JSON export."""
    if not isinstance(task, dict):
        raise ValueError(f"no task of Label Studio's JSON export: {task!r}")
    if "annotator" in task and "annotations" not in task:
        raise ValueError(
            "this is JSON-MIN, which puts the task's number in place of the item's id; "
            "export the project as JSON"
        )
    data, annotations = task.get("data"), task.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise ValueError(
            "no task of Label Studio's JSON export: expected 'data' and a list of 'annotations', "
            f"the keys are {', '.join(map(repr, task)) or 'none'}"
        )
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise ValueError("an annotation without 'result'; export whole annotations, as JSON")
    return data, annotations


def _person(annotation: Row) -> str:
    """Who answered: a number, or a person with one."""
    person = annotation.get("completed_by")
    number = person.get("id") if isinstance(person, dict) else person
    if number is None or not (who := str(number).strip()):
        raise ValueError("an annotation without 'completed_by', who gave it")
    return who


def write(study: Study, folder: Path) -> list[Path]:
    """The two files to give to Label Studio."""
    config, imported = folder / "label_studio.xml", folder / "label_studio.json"
    config.write_text(configuration(study))
    imported.write_text(json.dumps(tasks(study), ensure_ascii=False, indent=1) + "\n")
    return [config, imported]
