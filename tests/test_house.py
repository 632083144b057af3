"""The rules of the code base: layers, what stays light, how long files are."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from layers import LAYERS, LEVEL, figures, imports, longest_chain, parts_of, upward

import flatgd

PACKAGE = Path(flatgd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
AT_ROOT = 9  # modules at the root of the package, at most


def test_every_part_has_its_layer() -> None:
    assert parts_of(PACKAGE) == LEVEL.keys()


def test_imports_point_down() -> None:
    assert upward(PACKAGE) == []


def test_an_upward_import_is_found(tmp_path: Path) -> None:
    for name, text in [("io/a.py", "import flatgd.cli.main"), ("cli/main.py", ""), ("run.py", "")]:
        path = tmp_path / "flatgd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert upward(tmp_path / "flatgd") == ["io/a.py imports cli"]
    (tmp_path / "flatgd/unknown.py").touch()
    assert figures(tmp_path / "flatgd")["upward imports"] == "no layers defined"


def test_the_longest_chain_counts_a_cycle_as_one_part() -> None:
    assert longest_chain({"a": {"b"}, "b": {"c"}, "c": set(), "d": {"c"}}) == 3
    assert longest_chain({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == 2
    assert figures(PACKAGE)["layers (longest chain of imports)"] == len(LAYERS)


def test_contributing_shows_the_layers() -> None:
    shown = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    for names in LAYERS:
        line = r"^ {4}" + r"\s+".join(names) + r"(\s|$)"
        assert re.search(line, shown, re.MULTILINE), names


def test_few_modules_at_the_root() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= AT_ROOT


def test_losses_and_flatness_import_torch_alone() -> None:
    for folder in ("losses", "flatness"):
        for path in (PACKAGE / folder).rglob("*.py"):
            ours = {name for name in imports(path) if name.startswith("flatgd")}
            assert all(name.startswith(f"flatgd.{folder}") for name in ours), path


EVALUATION = ", ".join(
    f"flatgd.evaluation.{p.stem}" for p in (PACKAGE / "evaluation").glob("[a-z]*")
)


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import flatgd.cli.main", ("torch", "transformers", "numpy", "pydantic")),
        ("import flatgd", ("torch", "transformers")),
        ("import flatgd.report.build, flatgd.annotate.server", ("torch", "transformers")),
        (f"import {EVALUATION}", ("torch", "transformers")),
    ],
)
def test_what_stays_unloaded(code: str, absent: tuple[str, ...]) -> None:
    probe = f"import sys; {code}; print([m for m in {absent!r} if m in sys.modules])"
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(shown.stdout) == []


def test_training_needs_no_recipe() -> None:
    """`FlatGDTrainer` is of use without pydantic or datasets."""
    for folder in ("losses", "flatness", "training", "methods"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert not {name.split(".")[0] for name in imports(path)} & {"pydantic", "datasets"}
            assert "flatgd.config.recipe" not in imports(path), path


def test_files_and_functions_are_short_and_say_what_they_are() -> None:
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        tree = ast.parse(text)
        assert ast.get_docstring(tree), f"{path} has no docstring"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


def test_public_names_resolve() -> None:
    for name in flatgd.__all__:
        assert getattr(flatgd, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = flatgd.nope


def test_no_way_to_run_what_a_file_holds() -> None:
    for path in FILES:
        text = path.read_text()
        if path.name == "trust.py":
            continue
        for word in ("pickle", "torch.load", "yaml.load(", "eval("):
            assert word not in text.replace(".eval()", ""), f"{path}: {word}"
