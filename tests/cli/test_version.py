"""`flatgd --version` says what a report of a bug needs."""

import platform
import subprocess
import sys
from importlib.metadata import version

from typer.testing import CliRunner

from flatgd.cli.main import app


def test_versions_of_what_matters_are_printed() -> None:
    shown = CliRunner().invoke(app, ["--version"])
    assert shown.exit_code == 0
    lines = shown.output.splitlines()
    assert lines[:3] == [f"{name} {version(name)}" for name in ("flatgd", "torch", "transformers")]
    assert lines[3].startswith(f"Python {platform.python_version()}, ")


def test_no_library_is_imported_for_it() -> None:
    probe = """
import sys
from flatgd.cli.main import app
try:
    app(["--version"])
except SystemExit:
    print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    shown = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines()[-1] == "[]"
