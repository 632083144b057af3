"""A study in Label Studio: tasks, labelling configuration, and the answers of its JSON export
(https://labelstud.io/guide/task_format)."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, TypedDict
from xml.sax.saxutils import quoteattr

from flatgd.annotate.study import CHOICES, Answer, Study, turns_of
from flatgd.errors import DataError, Problem
from flatgd.io.records import is_number, parse_json_array

Json = dict[str, Any]  # an object of the export, not yet checked


class TaskData(TypedDict):
    """What one task shows."""

    id: str
    history: list[dict[str, str]]
    left: str
    right: str


class Task(TypedDict):
    """A task to import into Label Studio."""

    data: TaskData


def tasks(study: Study) -> list[Task]:
    """One task for each item."""
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
    questions = "\n  ".join(
        f'<Header value={quoteattr(text)} size="5"/>\n  <Choices name={quoteattr(name)} '
        'toName="left" choice="single-radio" showInline="true" required="true">'
        + "".join(f'<Choice value="{choice}"/>' for choice in CHOICES)
        + "</Choices>"
        for name, text in study.questions.items()
    )
    paragraphs = "".join(
        f'  <Header value={quoteattr(text)} size="6"/>\n'
        for text in (*study.consent, *study.instructions)
    )
    return (
        f'<View>\n{paragraphs}  <Paragraphs name="history" value="$history" layout="dialogue" '
        f'nameKey="who" textKey="text"/>\n'
        f'  <View style="display: flex">{sides}</View>\n  {questions}\n</View>\n'
    )


def answers(path: Path, study: Study, skipped: Counter[str] | None = None) -> list[Answer]:
    """Read the answers of a JSON export; everything else in it is counted in `skipped`.

    Raises DataError if the file is no such export or belongs to another study.
    """
    export = _Export(study, Counter() if skipped is None else skipped)
    problems = []
    for line, task in parse_json_array(path):
        try:
            if isinstance(task, ValueError):
                raise task
            export.add(task, line)
        except ValueError as error:
            problems.append(Problem(str(path), line, str(error)))
    if problems := problems or export.misnamed_controls(path):
        raise DataError(problems)
    return export.answers


class _Export:
    """The answers read from an export so far."""

    def __init__(self, study: Study, skipped: Counter[str]):
        self.answers: list[Answer] = []
        self._study, self._skipped = study, skipped
        self._items = {item["id"] for item in study.items}
        self._other_controls: dict[str, int] = {}  # name to the first line that has it
        self._suspects: set[str] = set()  # other controls whose answers look like a question's

    def add(self, task: Any, line: int) -> None:
        """Read one task. ValueError if it is no task of a JSON export, or of another study."""
        data, annotations = _parts(task)
        item = data.get("id")
        if not isinstance(item, str) or item not in self._items:
            raise ValueError(f"the task is about {item!r}, which is not an item of this study")
        if drafts := len(task.get("drafts") or ()):
            self._skipped["drafts that were never submitted"] += drafts
        for annotation in sorted(annotations, key=lambda one: str(one.get("updated_at") or "")):
            if annotation.get("was_cancelled"):
                self._skipped["skipped tasks"] += 1
                continue
            annotator = _annotator(annotation)
            seconds: Any = annotation.get("lead_time")
            seconds = seconds if is_number(seconds) and seconds >= 0 else None
            chosen = self._chosen(annotation["result"], line)
            self.answers += [
                Answer(item, annotator, name, choice, seconds) for name, choice in chosen.items()
            ]
            for name in self._study.questions:
                if name not in chosen:
                    self._skipped[f"answers to {name!r}, which annotations lack"] += 1

    def _chosen(self, result: list[Any], line: int) -> dict[str, str]:
        """The choice for each question of the study. Other controls are counted."""
        chosen: dict[str, str] = {}
        for region in result:
            if not isinstance(region, dict):
                raise ValueError(f"an answer must be a JSON object, got {region!r}")
            name = str(region.get("from_name") or region.get("type"))  # a relation has no name
            value = region.get("value")
            choices = value.get("choices") if isinstance(value, dict) else None
            if name in self._study.questions:
                if name in chosen:
                    raise ValueError(f"{name!r} is answered twice in one annotation; keep one")
                chosen[name] = _single(name, choices, region.get("type"))
                continue
            self._other_controls.setdefault(name, line)
            if isinstance(choices, list) and choices and all(one in CHOICES for one in choices):
                self._suspects.add(name)
            self._skipped[f"answers of the control {name!r}, which is not a question"] += 1
        return chosen

    def misnamed_controls(self, path: Path) -> list[Problem]:
        """Questions without any answer, where another control seems to hold the answers."""
        answered = {answer.question for answer in self.answers}
        names = list(self._suspects or ([] if self.answers else self._other_controls))
        if not names:
            return []
        controls = ", ".join(map(repr, sorted(names)))
        return [
            Problem(
                str(path),
                min(self._other_controls[name] for name in names),
                f"{question!r} has no answers, but {controls} has; each control must have the name "
                "of its question in study.json. Rename from_name in the export, or remove the "
                "question from study.json if it was not asked",
            )
            for question in self._study.questions
            if question not in answered
        ]


def _single(question: str, choices: Any, kind: Any) -> str:
    """The one choice of an answer."""
    if not isinstance(choices, list):
        raise ValueError(
            f"{question!r} is answered by a control of type {kind!r}; a question needs Choices "
            f"with {', '.join(CHOICES)}"
        )
    if len(choices) != 1 or choices[0] not in CHOICES:
        given = " and ".join(map(repr, choices)) or "nothing"
        raise ValueError(
            f"{question!r} is answered by {given}; expected one of {', '.join(CHOICES)}"
        )
    return str(choices[0])


def _parts(task: Any) -> tuple[Json, list[Json]]:
    """A task's data and annotations. ValueError if it is no task of a JSON export."""
    if not isinstance(task, dict):
        raise ValueError(f"expected a task of Label Studio's JSON export, got {task!r}")
    if "annotator" in task and "annotations" not in task:
        raise ValueError(
            "this is JSON-MIN, which has the task's number in place of the item's id; export the "
            "project as JSON"
        )
    data, annotations = task.get("data"), task.get("annotations")
    if not isinstance(data, dict) or not isinstance(annotations, list):
        raise ValueError(
            "expected a task of Label Studio's JSON export, with 'data' and a list of "
            f"'annotations'; the keys are {', '.join(map(repr, task)) or 'none'}"
        )
    for annotation in annotations:
        if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
            raise ValueError("an annotation has no 'result'; export whole annotations, as JSON")
    return data, annotations


def _annotator(annotation: Json) -> str:
    """The annotator's number, which stands alone or in an object."""
    by = annotation.get("completed_by")
    number = by.get("id") if isinstance(by, dict) else by
    if number is None or not (name := str(number).strip()):
        raise ValueError("an annotation has no 'completed_by', which says who gave it")
    return name


def write(study: Study, folder: Path) -> list[Path]:
    """Write the two files to import into Label Studio."""
    config, imported = folder / "label_studio.xml", folder / "label_studio.json"
    config.write_text(configuration(study))
    imported.write_text(json.dumps(tasks(study), ensure_ascii=False, indent=1) + "\n")
    return [config, imported]
