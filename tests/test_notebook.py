"""The notebook of the docs: ten cells from a labelled CSV to a report, without outputs."""

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from flatgd.artifacts import layout

NOTEBOOK = Path(__file__).parent.parent / "docs/notebook.ipynb"
MODELS = {"backbone", "clean_expert", "toxic_expert", "clean", "safety_loss", "flatgd"}


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_it_has_ten_cells_and_no_outputs() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert len(cells) == 10
    assert not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_it_runs_and_ends_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = ("TMPDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
    for name in places:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("BROWSER", "true")  # opens nothing
    notebook: Any = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    [page] = tmp_path.glob(f"*/runs/mine/{layout.PAGE}")
    assert "</html>" in page.read_text()
    summary = json.loads((page.parent / "summary.json").read_text())
    assert {row["method"] for row in summary} >= MODELS
    *_, stats, init, check, _, table, report, chat = map(printed, code_cells(notebook))
    assert "'context' is read as prompt" in stats
    assert "Wrote mine.yaml" in init
    assert "nothing wrong found" in check
    assert {line.split()[0] for line in table.splitlines() if line.strip()} >= MODELS
    assert "flatgd gives a toxic reply in" in report
    assert chat.count("flatgd:") == 2
