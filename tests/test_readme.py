"""What the documents show is what the code does."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from conftest import mild_rows, write_rows
from transformers import AutoTokenizer
from typer.testing import CliRunner

from flatgd.cli import app
from flatgd.methods import METHODS
from flatgd.recipe import Recipe
from flatgd.training import FlatGDConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCS = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert found
    return found.group(1)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "replies.jsonl", mild_rows(8, 1))
    code = block("python").replace("facebook/blenderbot-400M-distill", str(backbone_folder))
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "safe/model.safetensors").exists()
    assert AutoTokenizer.from_pretrained(tmp_path / "safe")("hello")["input_ids"]


def test_the_recipe_of_the_readme_is_one() -> None:
    raw = yaml.safe_load(block("yaml"))
    assert Recipe.model_validate(raw, context={"folder": ROOT}).methods["flatgd"]


def test_commands_named_exist_and_have_help_with_an_example() -> None:
    runner = CliRunner()
    named = {name for text in DOCS for name in re.findall(r"`flatgd (\w+)", text)}
    assert named >= {"run", "train", "experts", "generate", "score", "report", "check"}
    for name in named:
        shown = runner.invoke(app, [name, "--help"])
        assert shown.exit_code == 0, name
        assert f"Example: flatgd {name}" in shown.output


def test_links_and_files_named_exist() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        for name in re.findall(r"`((?:flatgd|recipes|scripts|tests)/[\w/.]+\.\w+)`", text):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


def test_every_method_has_a_row() -> None:
    text = (ROOT / "docs/method.md").read_text()
    assert all(f"| `{name}` |" in text for name in METHODS)


def test_fields_named_in_deviations_exist() -> None:
    fields = {field.name for field in dataclasses.fields(FlatGDConfig)}
    known = fields | set(Recipe.model_fields) | {"history_lines", "speaker", "keep_canned"}
    table = (ROOT / "docs/deviations.md").read_text().split("\n## ")[0]
    for line in table.splitlines()[4:]:
        if line.startswith("|"):
            for name in re.findall(r"`(\w+)", line.rsplit("|", 2)[1]):
                assert name in known, name
