"""What unknown columns and labels mean: guessed where names and values agree, refused elsewhere."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.data.guess import guess
from flatgd.data.sets import load_sets


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
        (table("stars", "1", "5"), "no column looks like a label"),
        (
            [{"a": "x", "is_safe": "yes"}, {"a": "y", "is_safe": "no"}],
            "no column looks like the reply",
        ),
        ([{"n": 1, "label": 0}, {"n": 2, "label": 1}], "no column holds text"),
    ],
)
def test_what_leaves_a_choice_is_refused(rows: list[Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        guess(rows)


def test_our_own_keys_need_no_guess() -> None:
    own = [{"prompt": "hi", "completion": "hello!", "label": n > 0} for n in range(2)]
    assert guess(own) is None


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
