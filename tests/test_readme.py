"""What the documents show is what the code does."""

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from conftest import mild_rows, write_rows
from families import FAMILIES
from transformers import AutoTokenizer
from typer.main import get_command
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.judge import JudgeSettings
from flatgd.config.recipe import Recipe
from flatgd.config.source import Format, Source
from flatgd.methods import METHODS
from flatgd.models.dialogue_format import ENCODER_DECODER
from flatgd.training import FlatGDConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PYTHON = (ROOT / "docs/python.md").read_text()
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")),
    *sorted((ROOT / "docs").glob("*.md")),
]
DOCS = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]


def block(language: str, text: str = README) -> str:
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found.group(1)


def test_the_python_of_the_docs_runs(
    tmp_path: Path, backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "replies.jsonl", mild_rows(8, 1))
    code = block("python", PYTHON).replace("facebook/blenderbot-400M-distill", str(backbone_folder))
    exec(compile(code, "docs/python.md", "exec"), {})
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


def test_commands_are_listed_whole() -> None:
    listed = (ROOT / "docs/commands.md").read_text()
    for name in get_command(app).commands:
        assert f"`flatgd {name} " in listed, name


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 120


def test_commands_shown_can_be_typed() -> None:
    """Every option of an indented `flatgd ...` line is one of that command's."""
    lines = [
        line
        for text in DOCS
        for line in re.findall(r"^ {4}(?:\.venv/bin/)?flatgd (.+)", text, re.M)
    ]
    assert len(lines) > 12
    for line in lines:
        words = line.partition("  ")[0].split()
        words = words[2:] if words[0] == "--allow" else words
        command = words[:2] if words[0] in ("data", "annotate") else words[:1]
        shown = CliRunner().invoke(app, [*command, "--help"])
        assert shown.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, line


def test_the_tables_of_formats_and_families_are_whole() -> None:
    data, models = ((ROOT / f"docs/{name}.md").read_text() for name in ("data", "models"))
    assert all(f"| `{name}` |" in data for name in get_args(Format) if name != "jsonl")
    for name in ENCODER_DECODER:
        assert f"`{name}`" in models
    for name in FAMILIES:
        assert f"| {name} | passed" in models
    assert set(FAMILIES) > set(ENCODER_DECODER)
    fields = set(Source.model_fields) - {"name", "format", "path", "split"}
    for name in fields:
        assert f"`{name}`" in data or f"{name}:" in data, name


def test_yaml_in_the_docs_holds() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        for text in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL):
            raw = yaml.safe_load(text)
            for judge in raw.get("judges", []) if isinstance(raw, dict) else []:
                JudgeSettings.model_validate(judge, context={"folder": ROOT})
            sources = raw if isinstance(raw, list) else raw.get("data", {}).get("policy", [])
            for source in sources:
                Source.model_validate(source, context={"folder": ROOT})


def test_links_and_files_named_exist() -> None:
    for path in PAGES:
        text = path.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
        for name in re.findall(r"`((?:flatgd|recipes|scripts|tests)/[\w/.]+\.\w+)`", text):
            assert "NAME" in name or (ROOT / name).exists(), f"{path.name}: {name}"


def test_contributing_names_things_where_they_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    pairs = re.findall(r"`(\w+)` in `(\w+/[\w/.]+\.py)`", text)
    assert len(pairs) > 5
    for name, path in pairs:
        assert re.search(rf"^(class )?{name}\b", (ROOT / path).read_text(), re.M), (name, path)


def test_every_method_has_a_row() -> None:
    text = (ROOT / "docs/method.md").read_text()
    assert all(f"| `{name}` |" in text for name in METHODS)


def test_fields_named_in_deviations_exist() -> None:
    fields = {field.name for field in dataclasses.fields(FlatGDConfig)}
    known = fields | set(Recipe.model_fields) | set(Source.model_fields)
    table = (ROOT / "docs/deviations.md").read_text().split("\n## ")[0]
    for line in table.splitlines()[4:]:
        if line.startswith("|"):
            for name in re.findall(r"`(\w+)", line.rsplit("|", 2)[1]):
                assert name in known, name
