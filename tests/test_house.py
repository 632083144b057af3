"""The rules of the code base: layers, what stays light, how long files are."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import flatgd

PACKAGE = Path(flatgd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A module imports from the lines below its own, and from its own folder. Top first.
LAYERS = [
    ("__main__",),
    ("cli",),
    ("run",),
    ("publish", "studies"),
    ("report", "pipeline"),
    ("annotate", "chat", "training"),
    ("evaluation", "judges", "methods"),
    ("artifacts", "data", "models"),
    ("web", "io", "config"),
    ("errors", "dialogue", "runtime", "losses", "flatness"),
]
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}
AT_ROOT = 9  # modules beside the folders, at most


def imports(path: Path) -> set[str]:
    """Every module a file imports, also inside functions, but for annotations alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "flatgd":
            found |= {f"flatgd.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part_of(path: Path) -> str:
    """The folder, or the module at the root, that a file belongs to."""
    first, *rest = path.relative_to(PACKAGE).parts
    return first if rest else first.removesuffix(".py")


def upward() -> list[str]:
    """Imports that do not point down."""
    wrong = []
    for path in FILES:
        own = part_of(path)
        if own == "__init__":  # names that users import are loaded when first used
            continue
        for name in imports(path):
            root, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if root == "flatgd" and other != own and LEVEL.get(other, 0) >= LEVEL[own]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    return wrong


def test_imports_point_down() -> None:
    assert upward() == []


def test_every_part_has_its_layer() -> None:
    parts = {part_of(path) for path in FILES} - {"__init__"}
    assert parts == LEVEL.keys()


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
