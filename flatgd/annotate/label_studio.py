"""A study in Label Studio: its tasks, its configuration, and the answers of its JSON export
(https://labelstud.io/guide/task_format)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from flatgd.annotate.study import CHOICES, Answer, Study, turns_of
from flatgd.errors import DataError, Problem
from flatgd.records import is_number, parse_json_array

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


def answers(path: Path, study: Study) -> list[Answer]:
    """The answers of a JSON export; skipped tasks have none. Raises DataError for what is no such
    export, or of another study."""
    found, problems = [], []
    asked = {item["id"] for item in study.items}
    for line, task in parse_json_array(path):
        try:
            found += list(_of_task(task, asked, study))
        except (KeyError, TypeError, AttributeError):
            reason = (
                "no task of Label Studio's JSON export (not JSON-MIN, which leaves out who said it)"
            )
            problems.append(Problem(str(path), line, reason))
        except ValueError as error:
            problems.append(Problem(str(path), line, str(error)))
    if problems:
        raise DataError(problems)
    return found


def _of_task(task: Row, asked: set[str], study: Study) -> Iterator[Answer]:
    item = task["data"]["id"]
    if item not in asked:
        raise ValueError(f"task of {item!r}, which is no item of this study")
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        person, seconds = annotation["completed_by"], annotation.get("lead_time")
        who = str(person["id"] if isinstance(person, dict) else person).strip()
        if not who:
            raise ValueError("an annotation without 'completed_by'")
        for region in annotation["result"]:
            name, (choice,) = region["from_name"], region["value"]["choices"]
            if name not in study.questions or choice not in CHOICES:
                raise ValueError(f"{name!r} answered by {choice!r}, which this study does not ask")
            yield Answer(
                item, who, name, choice, seconds if is_number(seconds) and seconds >= 0 else None
            )


def write(study: Study, folder: Path) -> list[Path]:
    """The two files to give to Label Studio."""
    config, imported = folder / "label_studio.xml", folder / "label_studio.json"
    config.write_text(configuration(study))
    imported.write_text(json.dumps(tasks(study), ensure_ascii=False, indent=1) + "\n")
    return [config, imported]
