"""A study's files: what they hold, and what is refused."""

import json
import math
import os
import sqlite3
from pathlib import Path

import pytest
from studies import by_hand, generations, small_study
from typer.testing import CliRunner

from flatgd.annotate import label_studio
from flatgd.annotate.study import Answer, load_answers, load_study
from flatgd.annotate.votes import Votes
from flatgd.cli.main import app
from flatgd.errors import DataError, FlatGDError, UsageError


def test_an_answer_that_was_changed_counts_once(tmp_path: Path) -> None:
    study, answers = by_hand()
    lines = [
        json.dumps(answer._asdict()) for answer in [*answers, answers[0]._replace(choice="both")]
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(lines))
    loaded = load_answers(path, study)
    assert len(loaded) == len(answers)
    assert loaded[0].choice == "both"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": "nope"}, "this study has no item 'nope'"),
        ({"question": "nope"}, "this study has no question 'nope'"),
        ({"choice": "nope"}, "this study has no choice 'nope'"),
        ({"annotator": 3}, "'annotator' must be text, got int"),
        ({"seconds": "long"}, "'seconds' must be a number of at least 0, got 'long'"),
        ({"seconds": math.nan}, "'seconds' must be a number of at least 0, got nan"),
        ({"annotator": "\ud800"}, "surrogate"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_answers_that_do_not_belong_to_the_study(
    tmp_path: Path, change: dict, message: str
) -> None:
    study, (answer, *_) = by_hand()
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({**answer._asdict(), **change}))
    with pytest.raises(DataError, match=rf"answers\.jsonl:1: .*{message}"):
        load_answers(path, study)


def test_from_a_run_to_a_tally(recipe_file: Path, tmp_path: Path) -> None:
    def flatgd(*words: str) -> str:
        return CliRunner().invoke(app, ["annotate", *words], catch_exceptions=False).output

    def refused(*words: str) -> str:
        with pytest.raises(FlatGDError) as raised:
            flatgd(*words)
        return str(raised.value)

    recipe, folder = str(recipe_file), tmp_path / "study"
    assert "no replies yet of flatgd" in refused("create", recipe)
    replies = recipe_file.parent / "run/generations"
    replies.mkdir(parents=True)
    for name, rows in generations().items():
        model = {"a": "flatgd", "b": "clean", "c": "safety_loss"}[name]
        (replies / f"{model}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "no 'nope' in this recipe" in refused("create", recipe, "--against", "nope")
    assert "needs another model to compare with" in refused("create", recipe, "--against", "flatgd")
    shown = flatgd("create", recipe, "--to", str(folder), "--count", "8", "--repeats", "2")
    assert "pairs to compare in" in shown
    assert "already holds a study. Choose another folder with `--to`" in refused(
        "create", recipe, "--to", str(folder)
    )
    study = load_study(folder)
    assert "flatgd" not in (folder / "items.jsonl").read_text()
    answers = [
        Answer(item["id"], name, question, "left", 1.5)
        for item in study.items
        for name in ("ann", "bob", "[/red]")
        for question in study.questions
    ]
    (folder / "answers.jsonl").write_text("\n".join(json.dumps(a._asdict()) for a in answers))
    shown = flatgd("tally", str(folder))
    for part in ("clean or flatgd", "safety_loss or flatgd", "annotators", "ann 54 1.500"):
        assert part in " ".join(shown.split())
    assert (
        json.loads((folder / "tally.json").read_text())["annotators"][0]["answers"]
        == len(answers) / 3
    )
    (folder / "items.jsonl").write_text((folder / "items.jsonl").read_text().split("\n", 1)[1])
    assert "its items are not those of key.jsonl" in refused("tally", str(folder))
    keys = (folder / "key.jsonl").read_text()
    (folder / "rest.jsonl").write_text("{}")
    assert "rest.jsonl:1: expected target, baseline" in refused("tally", str(folder))
    (folder / "rest.jsonl").unlink()
    (folder / "key.jsonl").write_text(keys.replace('"left"', '"top"'))
    assert "'target_side' must be left or right, got 'top'" in refused("tally", str(folder))
    (folder / "key.jsonl").write_text('{"id": "x"}')
    assert "expected id, target" in refused("tally", str(folder))
    for about, why in (
        ('{"questions": ', "not valid JSON"),
        ('{"questions": 3}', "must map each name to the text"),
        ('{"questions": {"a": "b"}, "votes": 0}', "'votes' must be a whole number of at least 1"),
        (
            '{"questions": {"a": "b"}, "votes": true}',
            "'votes' must be a whole number of at least 1",
        ),
        ('{"question": {"a": "b"}, "votes": 1}', "unknown key 'question'; did you mean"),
        ('{"questions": {"a": "b"}, "votes": 1, "consent": "x"}', "must be a list of paragraphs"),
    ):
        (folder / "study.json").write_text(about.replace("{", '{"format": 1, ', 1))
        assert why in refused("tally", str(folder))
    assert "There is no study in" in refused("tally", str(tmp_path / "nowhere"))
    assert "cannot be written" in refused("create", recipe, "--to", f"{recipe}/study")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_keys_votes_and_answers_are_their_owner_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study = small_study(2)
    study.save(folder)
    (folder / "votes.db").touch(mode=0o644)  # as an earlier process may have left it
    Votes(folder, study).close()
    export = [{**task, "annotations": []} for task in label_studio.tasks(study)]
    (tmp_path / "export.json").write_text(json.dumps(export))
    words = ["annotate", "import", str(folder), str(tmp_path / "export.json")]
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("key.jsonl", "rest.jsonl", "votes.db", "answers.jsonl"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600, name


@pytest.mark.parametrize(
    ("found", "message"),
    [(None, "has no format number"), (2, "has format 2"), ("1", "has format '1'"), (True, "True")],
)
def test_a_study_of_another_format_is_refused(tmp_path: Path, found: object, message: str) -> None:
    folder = tmp_path / "study"
    small_study(2).save(folder)
    settings = json.loads((folder / "study.json").read_text())
    del settings["format"]
    settings |= {} if found is None else {"format": found}
    (folder / "study.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=rf"{message}.*; this version of flatgd reads format 1"):
        load_study(folder)


def test_votes_of_another_format_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "votes.db") as database:
        database.execute("create table people (token text primary key)")
    database.close()
    with pytest.raises(UsageError, match="has no format number"):
        Votes(tmp_path, small_study(2))
