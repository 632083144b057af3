"""A study on Mechanical Turk: HITs, and answers from a result file."""

import csv
import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from studies import generations
from typer.testing import CliRunner

from flatgd.annotate import mturk
from flatgd.annotate.pairs import create
from flatgd.annotate.study import Answer, Study, field_of, load_answers
from flatgd.cli.main import app
from flatgd.errors import DataError


def result_file(path: Path, study: Study, **change: str) -> Path:
    rows = [
        {
            **{"WorkerId": "W1", "AssignmentStatus": "Submitted", "WorkTimeInSeconds": "31"},
            "Answer.item": item["id"],
            **{f"Answer.{field_of(name)}": "left" for name in study.questions},
            **change,
        }
        for item in study.items
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_there_and_back_by_mechanical_turk(tmp_path: Path) -> None:
    study = create(generations("ab"), "a", ["b"], count=4, votes=5)
    study.items[0]["left"] = "]]> <script>x</script> \x07 & so on"
    study.save(tmp_path / "study")
    message = CliRunner().invoke(
        app, ["annotate", "export", str(tmp_path / "study"), "--form", "mturk"]
    )
    (path,) = message.output.split()
    hits = [json.loads(line) for line in Path(path).read_text().splitlines()]
    assert len(hits) == 4
    assert {hit["MaxAssignments"] for hit in hits} == {5}
    for hit, item in zip(hits, study.items, strict=True):
        question = ElementTree.fromstring(hit["Question"])
        assert question.tag.endswith("HTMLQuestion")
        page = question[0].text
        assert "https://www.mturk.com/mturk/externalSubmit" in page
        assert f'name="item" value="{item["id"]}"' in page
        assert "<script>x" not in page
        assert page.count('type="radio"') == 12
    export = result_file(tmp_path / "results.csv", study)
    message = CliRunner().invoke(app, ["annotate", "import", str(tmp_path / "study"), str(export)])
    assert "12 new answers" in message.output
    (first, *_) = load_answers(tmp_path / "study/answers.jsonl", study)
    assert first == Answer(study.items[0]["id"], "W1", "toxic", "left", 31.0)
    assert (
        mturk.answers(result_file(tmp_path / "r.csv", study, AssignmentStatus="Rejected"), study)
        == []
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Answer.item": "nope"}, "'nope' is not an item of this study"),
        ({f"Answer.{field_of('fluent')}": ""}, "'fluent' is answered by ''; expected one of left"),
        ({"WorkerId": " "}, "'WorkerId' is empty"),
    ],
)
def test_results_that_are_not_of_the_study(tmp_path: Path, change: dict, message: str) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    with pytest.raises(DataError, match=rf"r.csv:2: {message}"):
        mturk.answers(result_file(tmp_path / "r.csv", study, **change), study)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column 'Answer\.item'"):
        mturk.answers(tmp_path / "other.csv", study)


def test_further_fields_and_rejected_work_of_mechanical_turk_are_counted(tmp_path: Path) -> None:
    study = create(generations("ab"), "a", ["b"], count=4)
    skipped: Counter[str] = Counter()
    path = result_file(tmp_path / "r.csv", study, **{"Answer.comment": "not sure"})
    assert len(mturk.answers(path, study, skipped)) == 12
    assert skipped == {"answers in 'Answer.comment', which is not a question of the study": 4}
    skipped.clear()
    path = result_file(tmp_path / "r.csv", study, AssignmentStatus="Rejected")
    assert mturk.answers(path, study, skipped) == []
    assert skipped == {"rejected assignments": 4}
    text = path.read_text().replace(field_of("toxic"), "q0")
    path.write_text(text)
    with pytest.raises(DataError, match=r"\(the answers to 'toxic'\); expected Mechanical Turk's"):
        mturk.answers(path, study)
