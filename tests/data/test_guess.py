"""What unknown columns and labels mean: guessed where names and values agree, refused elsewhere."""

import csv
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.loading import as_text, load_recipe, validated
from flatgd.config.source import Source
from flatgd.data.guess import guess
from flatgd.data.sets import load_sets
from flatgd.errors import UsageError


def table(label: str, *values: Any, prompt: str = "question", reply: str = "answer") -> list[Any]:
    return [{prompt: f"q{n}", reply: f"a{n}", label: value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("rows", "safe", "toxic"),
    [
        (table("is_safe", "yes", "no"), ["yes"], ["no"]),
        (table("Toxic", "1", "0", "0"), ["0"], ["1"]),
        (table("toxicity", 0, 1), ["0"], ["1"]),
        (table("label", "hate", "neither", "offensive"), ["neither"], ["hate", "offensive"]),
        (table("class", "Unsafe", "safe"), ["safe"], ["unsafe"]),
        (table("label", True, False), ["true"], ["false"]),
        (table("is_toxic", True, True), ["false"], ["true"]),
        (table("flagged", "No", "no"), ["no"], ["yes"]),
    ],
)
def test_what_names_and_values_say(rows: list[Any], safe: list[str], toxic: list[str]) -> None:
    found = guess(rows)
    assert found is not None
    assert (found.safe_values, found.toxic_values) == (safe, toxic)
    assert found.columns["prompt"] == "question"
    assert found.columns["completion"] == "answer"
    assert any("is read as" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (table("label", "1", "0"), "its name does not say which are safe"),
        (table("label", "fine", "meh"), "may mean safe or toxic"),
        (table("label", "toxic", "toxic", "hate"), "one kind alone"),
        (table("stars", "1", "5"), "none looks like the label"),
        (
            [{"a": "x", "is_safe": "yes"}, {"a": "y", "is_safe": "no"}],
            "none looks like the reply",
        ),
        ([{"n": 1, "label": 0}, {"n": 2, "label": 1}], "none looks like the reply"),
        ([{"answer": "a", "output": "b", "is_safe": "yes"}], "'answer', 'output' all look like"),
        ([{"answer": "a", "toxicity": 0, "is_safe": "no"}], "all look like the label"),
        (table("label", "safe", "unsafe", "None"), "'none' may mean safe or toxic"),
    ],
)
def test_what_leaves_a_choice_is_refused(rows: list[Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        guess(rows)


def test_our_own_keys_need_no_guess() -> None:
    own = [{"prompt": "hi", "completion": "hello!", "label": n > 0} for n in range(2)]
    assert guess(own) is None
    assert guess([{"prompt": "hi", "chosen": "hello!", "rejected": "shoo"}]) is None
    alpaca = {"instruction": "sum up", "input": "a", "output": "b", "history": [["x", "y"]]}
    assert guess([{**alpaca, "kto_tag": True}]) is None
    worded = guess([{**alpaca, "label": "safe"}, {**alpaca, "label": "toxic"}])
    assert worded is not None
    assert worded.fields() == {"safe_values": ["safe"], "toxic_values": ["toxic"]}


def test_further_columns_are_named_or_read() -> None:
    row = {"topic": "x", "prompt": "hi", "completion": "hello!", "label": "safe", "speaker": "bot"}
    found = guess([row, {**row, "label": "toxic"}])
    assert found is not None
    assert found.columns == {name: name for name in ("prompt", "completion", "label", "speaker")}
    assert "not read: 'topic'" in found.reasons
    dated = guess([{"answer": "a", "is_safe": n > 0, "at": date(2026, 1, 1)} for n in range(2)])
    assert dated is not None
    assert "not read: 'at'" in dated.reasons


def test_many_labels_do_not_flood_the_message() -> None:
    with pytest.raises(ValueError, match="none looks like the label") as told:
        guess(table("toxicity", *(n / 5000 for n in range(5000))))
    assert len(str(told.value)) < 300


def test_from_a_strangers_csv_to_a_running_recipe_with_two_commands(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "question", "answer", "is_safe"])
        for n in range(60):
            writer.writerow(
                [n, f"question number {n}?", f"answer, number {n}", "yes" if n % 3 else "no"]
            )
    runner = CliRunner()
    told = runner.invoke(app, ["data", "stats", str(path)], catch_exceptions=False)
    assert told.exit_code == 0
    assert "'yes' in 'is_safe' is read as safe" in told.output
    assert "not read: 'id'" in told.output
    line = next(line for line in told.output.splitlines() if line.startswith("  - {"))
    (source,) = yaml.safe_load(line)
    assert source["columns"] == {"prompt": "question", "completion": "answer", "label": "is_safe"}
    recipe = tmp_path / "recipe.yaml"
    asked = ["init", str(recipe), "--backbone", "demo:backbone", "--replies", str(path)]
    assert runner.invoke(app, asked, catch_exceptions=False).exit_code == 0
    told = runner.invoke(app, ["check", str(recipe)], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    sets = load_sets(load_recipe(recipe).data)
    assert sum(row.is_safe for row in (*sets.policy, *sets.judge, *sets.test)) == 40


@pytest.mark.parametrize("name", ["2024.yaml", "no.yaml", "a: b.yaml", "mine😀.yaml"])
def test_a_recipe_of_any_name_can_be_loaded(tmp_path: Path, name: str) -> None:
    replies = tmp_path / "my replies (v2)😀.csv"
    replies.write_text("answer,is_safe\na,yes\nb,no\n")
    asked = ["init", str(tmp_path / name), "--backbone", "demo:backbone", "--replies", str(replies)]
    assert CliRunner().invoke(app, asked, catch_exceptions=False).exit_code == 0
    recipe = load_recipe(tmp_path / name)
    assert recipe.data.policy[0].path == replies
    told = CliRunner().invoke(app, ["data", "stats", str(replies)], catch_exceptions=False)
    line = next(line for line in told.output.splitlines() if line.startswith("  - {"))
    (source,) = yaml.safe_load(line)
    assert validated(Source, source, Path(), "").name.startswith("my replies")


def test_what_init_cannot_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a")
    target = str(tmp_path / "r.yaml")
    for more, wanted in (
        (["--like", "demo", "--backbone", "gpt2"], "--like copies a recipe as it is"),
        (["--replies", str(tmp_path)], "is a folder"),
        (["--replies", str(tmp_path / "rows.txt")], "does not tell its format"),
    ):
        with pytest.raises(UsageError, match=wanted):
            CliRunner().invoke(app, ["init", target, *more], catch_exceptions=False)
    told = CliRunner().invoke(app, ["init", target, "--replies", "PKU-Alignment/PKU-SafeRLHF"])
    assert "is read from the hub" in told.output
    recipe = load_recipe(Path(target))
    assert recipe.data.policy[0].path == "PKU-Alignment/PKU-SafeRLHF"
    assert '"path": "PKU-Alignment/PKU-SafeRLHF"' in as_text(recipe)


def test_a_guess_that_is_open_says_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("question,answer,label\na,b,1\nc,d,0\n")
    told = CliRunner().invoke(app, ["data", "stats", str(path)])
    assert told.exit_code == 1
    given = ["--set", "columns.prompt=question", "--set", "columns.completion=answer"]
    given += [
        "--set",
        "columns.label=label",
        "--set",
        "safe_values=[0]",
        "--set",
        "toxic_values=[1]",
    ]
    assert CliRunner().invoke(app, ["data", "stats", str(path), *given]).exit_code == 0
