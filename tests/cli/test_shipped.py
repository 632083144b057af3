"""What works without the repository: the demo, and shipped recipes that are copied."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.errors import UsageError


def test_the_demo_runs_the_shipped_recipe_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe is the package's, the run is below the present folder."""
    asked: list[tuple[Path, list[str]]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "flatgd.cli.main._run", lambda recipe, fields, verbose: asked.append((recipe, fields))
    )
    assert CliRunner().invoke(app, ["demo"], catch_exceptions=False).exit_code == 0
    ((recipe, fields),) = asked
    assert recipe.name == "demo.yaml"
    assert fields == [f"output={tmp_path / 'runs/demo'}"]
    assert load_recipe(recipe, fields).output == tmp_path / "runs/demo"


def test_a_shipped_recipe_is_copied_with_its_run_below_its_own_folder(tmp_path: Path) -> None:
    copied = tmp_path / "mine.yaml"
    told = CliRunner().invoke(app, ["init", str(copied), "--like", "smollm2"])
    assert told.exit_code == 0
    assert load_recipe(copied).output == tmp_path / "runs/smollm2"
    with pytest.raises(UsageError, match="already exists"):
        CliRunner().invoke(app, ["init", str(copied), "--like", "demo"], catch_exceptions=False)
    with pytest.raises(UsageError, match="did you mean 'smollm2'"):
        CliRunner().invoke(
            app, ["init", str(tmp_path / "b.yaml"), "--like", "smolm2"], catch_exceptions=False
        )
