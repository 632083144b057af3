"""A whole small recipe in a folder, and a run of it."""

from io import StringIO
from pathlib import Path

from conftest import mild_rows, write_rows
from rich.console import Console

from flatgd.config.loading import load_recipe
from flatgd.run import run
from flatgd.runtime.display import Display


def write_recipe(folder: Path, backbone: Path, extra: str = "") -> Path:
    for name, seed in (("policy", 1), ("judge", 2), ("test", 3)):
        rows = [{**row, "prompt": row["prompt"][1:]} for row in mild_rows(12, seed)]
        write_rows(folder / f"{name}.jsonl", rows)
    sections = "\n".join(
        f"  {name}: [{{name: {name}, format: jsonl, path: {name}.jsonl}}]"
        for name in ("policy", "judge", "test")
    )
    path = folder / "recipe.yaml"
    path.write_text(
        f"name: tiny\noutput: run\nbackbone: {backbone}\nscorer: {backbone}\ndata:\n{sections}\n"
        "max_history_tokens: 64\nmax_reply_tokens: 32\n"
        "train: {max_steps: 3, per_device_train_batch_size: 4, learning_rate: 1e-3,"
        " save_strategy: steps, save_steps: 1}\n"
        "generate: {histories: 3, samples: 2, max_new_tokens: 6}\nreport: {resamples: 100}\n"
        + extra
    )
    return path


def run_recipe(recipe: Path, *overrides: str) -> str:
    """Run a recipe; what it showed on the terminal."""
    console = Console(record=True, width=200, file=StringIO())
    run(load_recipe(recipe, list(overrides)), Display(console))
    return console.export_text()
