"""Trackers by one line: TensorBoard for real, wandb offline. Skipped where they are not installed;
`make test-install` installs both."""

import json
from pathlib import Path

import pytest
from conftest import mild_rows, write_rows

from flatgd.config.loading import load_recipe
from flatgd.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.slow
FIGURES = {"loss", "lm", "js_clean", "js_toxic", "safety_grad_norm", "penalty_share", "grad_norm"}
EVALUATED = {"eval/loss", "eval/lm", "eval/js_clean", "eval/js_toxic"}


def trained(recipe_file: Path, tracker: str) -> Path:
    """flatgd alone, evaluated as it is trained."""
    text = recipe_file.read_text()
    policy = next(line for line in text.splitlines() if "policy:" in line)
    held = policy.replace("policy:", "eval:").replace("policy.jsonl", "held.jsonl")
    write_rows(recipe_file.parent / "held.jsonl", mild_rows(24, 9))
    recipe_file.write_text(text.replace(policy, f"{policy}\n{held}"))
    pipeline = Pipeline(
        load_recipe(
            recipe_file,
            [
                "methods={flatgd: {penalty_share: 0.3}}",
                f"train.report_to={tracker}",
                "train.eval_strategy=steps",
                "train.eval_steps=1",
            ],
        )
    )
    pipeline.models.train("flatgd")
    return pipeline.context.root


def test_tensorboard_has_every_figure(recipe_file: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    root = trained(recipe_file, "tensorboard")
    folders = {path.parent for path in root.rglob("events.out.tfevents*")}
    tags: set[str] = set()
    for folder in folders:
        if "methods" in str(folder):
            found = events.EventAccumulator(str(folder))
            found.Reload()
            tags |= set(found.Tags()["scalars"])
    assert {f"train/{name}" for name in FIGURES} <= tags
    assert tags >= EVALUATED


def test_wandb_offline_has_every_figure(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged: set[str] = set()
    log = wandb.sdk.wandb_run.Run.log
    monkeypatch.setattr(
        wandb.sdk.wandb_run.Run,
        "log",
        lambda run, data, *a, **k: (logged.update(data), log(run, data, *a, **k))[1],
    )
    trained(recipe_file, "wandb")
    assert {f"train/{name}" for name in FIGURES} <= logged
    assert logged >= EVALUATED
    assert list(tmp_path.rglob("*.wandb")), json.dumps(sorted(map(str, tmp_path.rglob("*"))))
