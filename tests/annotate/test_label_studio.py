"""A study in Label Studio: tasks, and answers from an export."""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from studies import by_hand, generations
from typer.testing import CliRunner

from flatgd.annotate import label_studio, mturk
from flatgd.annotate.pairs import create
from flatgd.annotate.study import Study, load_answers
from flatgd.cli.main import app
from flatgd.errors import DataError


def exported(study: Study, choice: str, **annotation: Any) -> list[dict]:
    """Label Studio's JSON export of tasks that one annotator answered."""
    result = [
        {"from_name": name, "to_name": "left", "type": "choices", "value": {"choices": [choice]}}
        for name in study.questions
    ]
    about = {"completed_by": 7, "lead_time": 4.5, "was_cancelled": False, "result": result}
    return [
        {**task, "annotations": [{**about, **annotation}]} for task in label_studio.tasks(study)
    ]


def test_there_and_back_by_label_studio(tmp_path: Path) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    folder, path = tmp_path / "study", tmp_path / "export.json"
    study.save(folder)
    tool = CliRunner()
    tool.invoke(app, ["annotate", "export", str(folder)], catch_exceptions=False)
    (first, *_) = json.loads((folder / "label_studio.json").read_text())
    assert [turn["who"] for turn in first["data"]["history"]] == ["bot", "person"]
    names = [
        node.get("name") for node in ElementTree.parse(folder / "label_studio.xml").iter("Choices")
    ]
    assert names == list(study.questions)
    for choice, by, message in (
        ("left", 7, "12 new answers, 12 in"),
        ("both", 7, "0 new answers, 12 in"),
        ("right", {"id": 8, "email": "a@b"}, "12 new answers, 24 in"),
    ):
        path.write_text(json.dumps(exported(study, choice, completed_by=by)))
        words = ["annotate", "import", str(folder), str(path)]
        assert message in tool.invoke(app, words, catch_exceptions=False).output
    answers = load_answers(folder / "answers.jsonl", study)
    assert Counter((a.annotator, a.choice, a.seconds) for a in answers) == {
        ("7", "both", 4.5): 12,
        ("8", "right", 4.5): 12,
    }
    path.write_text(json.dumps(exported(study, "left", was_cancelled=True)))
    assert label_studio.answers(path, study) == []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([{"id": 1, "toxic": "left"}], "expected a task of Label Studio's JSON export"),
        ([3], "expected a task of Label Studio's JSON export"),
        ([{"data": {"id": "x"}, "annotations": []}], "'x', which is not an item of this study"),
    ],
)
def test_what_is_no_export_is_message(tmp_path: Path, broken: list, message: str) -> None:
    path = tmp_path / "export.json"
    path.write_text(json.dumps(broken))
    with pytest.raises(DataError, match=rf"export\.json:1: .*{message}"):
        label_studio.answers(path, by_hand()[0])
    path.write_text(json.dumps(exported(by_hand()[0], "maybe")))
    with pytest.raises(DataError, match="answered by 'maybe'; expected one of"):
        label_studio.answers(path, by_hand()[0])


FURTHER = [
    {"from_name": "comment", "type": "textarea", "value": {"text": ["not sure"]}},
    {"from_name": "mood", "type": "rating", "value": {"rating": 4}},
    {"from_name": "kind", "type": "taxonomy", "value": {"taxonomy": [["a", "b"]]}},
    {"from_name": "age", "type": "number", "value": {"number": 3}},
    {"from_name": "sure", "type": "choices", "value": {"choices": ["yes", "very"]}},
    {"from_name": "better", "type": "choices", "value": {"choices": ["left"]}},
    {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"},
]


@pytest.mark.parametrize("further", FURTHER)
def test_a_further_control_is_counted_and_no_answer(tmp_path: Path, further: dict) -> None:
    study, path = by_hand()[0], tmp_path / "export.json"
    tasks = json.loads(json.dumps(exported(study, "left")))
    plain = label_studio.answers(write_json(path, tasks), study)
    for task in tasks:
        task["annotations"][0]["result"].insert(1, further)
    skipped: Counter[str] = Counter()
    assert label_studio.answers(write_json(path, tasks), study, skipped) == plain
    name = further.get("from_name", "relation")
    assert skipped == {f"answers of the control {name!r}, which is not a question": len(tasks)}


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_what_is_skipped_of_an_export_is_message(tmp_path: Path) -> None:
    """One annotator skipped, one sent an empty form, one answered twice; a draft was never sent."""
    study = create(generations("ab"), "a", ["b"], count=4)
    study.save(tmp_path / "study")
    tasks = exported(study, "left")
    (first, *_) = tasks
    (whole,) = first["annotations"]
    first["drafts"] = [{"result": []}]
    newer = json.loads(json.dumps(exported(study, "right")[0]["annotations"][0]))
    whole["updated_at"], newer["updated_at"] = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00Z"
    first["annotations"] = [
        newer,
        whole,
        {**whole, "completed_by": 8, "was_cancelled": True, "result": []},
        {**whole, "completed_by": 9, "result": []},
    ]
    path = write_json(tmp_path / "export.json", tasks)
    words = ["annotate", "import", str(tmp_path / "study"), str(path)]
    message = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "12 new answers, 12 in" in message
    assert "skipped: 1 skipped tasks" in message
    assert "skipped: 1 drafts that were never submitted" in message
    assert "skipped: 1 answers to 'toxic', which annotations lack" in message
    answers = load_answers(tmp_path / "study/answers.jsonl", study)
    mine = {a.choice for a in answers if a.item == study.items[0]["id"]}
    assert mine == {"right"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"from_name": "toxik"},
            r":1: 'toxic' has no answers, but 'toxik' has; each control must",
        ),
        (
            {"type": "rating", "value": {"rating": 3}},
            r":1: 'toxic' is answered by a control of type 'rating'; a question needs Choices",
        ),
        (
            {"value": {"choices": ["left", "right"]}},
            r":1: 'toxic' is answered by 'left' and 'right'; expected one of",
        ),
        ({"value": {"choices": []}}, r":1: 'toxic' is answered by nothing"),
        ({"value": {"choices": [["left"]]}}, r":1: 'toxic' is answered by \['left'\]"),
        ({"from_name": "fluent"}, r":1: 'fluent' is answered twice in one annotation"),
    ],
)
def test_a_control_that_does_not_fit_its_question(
    tmp_path: Path, change: dict, message: str
) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    tasks = json.loads(json.dumps(exported(study, "left")))
    for task in tasks:
        (answer,) = (a for a in task["annotations"][0]["result"] if a["from_name"] == "toxic")
        answer.update(change)
    with pytest.raises(DataError, match=message):
        label_studio.answers(write_json(tmp_path / "e.json", tasks), study)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"annotations": [{"result": []}]}, "no 'completed_by'"),
        ({"annotations": [{"completed_by": {"id": " "}, "result": []}]}, "no 'completed_by'"),
        ({"annotations": [{"completed_by": 7}]}, "an annotation has no 'result'"),
        ({"annotations": [{"completed_by": 7, "result": [3]}]}, "must be a JSON object, got 3"),
        ({"annotations": {}}, "with 'data' and a list of 'annotations'"),
        ({"data": {"id": ["i"]}, "annotations": []}, "not an item of this study"),
    ],
)
def test_a_task_that_is_broken(tmp_path: Path, task: dict, message: str) -> None:
    study = by_hand()[0]
    broken = [{**label_studio.tasks(study)[0], **task}]
    with pytest.raises(DataError, match=message):
        label_studio.answers(write_json(tmp_path / "e.json", broken), study)


def test_other_exports_of_label_studio_are_message_what_to_do(tmp_path: Path) -> None:
    """In JSON-MIN and CSV the task's number stands in place of the item's id."""
    study = by_hand()[0]
    row = {"id": 12, "left": "a", "toxic": "left", "annotator": 1, "annotation_id": 3}
    path = write_json(tmp_path / "min.json", [row])
    with pytest.raises(DataError, match=r"min.json:1: this is JSON-MIN.* export the project as"):
        label_studio.answers(path, study)
    table = tmp_path / "e.csv"
    table.write_text(",".join(row) + "\n" + ",".join(map(str, row.values())) + "\n")
    with pytest.raises(DataError, match=r"e.csv:2: this is Label Studio's CSV.* export the"):
        mturk.answers(table, study)
