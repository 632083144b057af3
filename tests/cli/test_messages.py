"""Messages that no other test sees. `make coverage` tells of any that none does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, write_rows
from published import MESSAGES, PLAIN
from training import trainer
from transformers import ViTConfig
from typer.testing import CliRunner

from flatgd import FlatGDConfig
from flatgd.artifacts.reader import load_judges
from flatgd.cli.main import app
from flatgd.config.judge import JudgeSettings
from flatgd.config.loading import load_recipe
from flatgd.data.formats.bbf import load_bbf
from flatgd.data.formats.toxichat import load_toxichat
from flatgd.data.jsonl import dialogues_from_row
from flatgd.errors import (
    CheckpointError,
    DataError,
    FlatGDError,
    ModelError,
    Problem,
    RecipeError,
    UnsupportedError,
    UsageError,
)
from flatgd.judges.linear import LinearJudge
from flatgd.judges.trained import TrainedJudge
from flatgd.models.dialogue_format import format_for
from flatgd.models.heads import output_head
from flatgd.models.loading import load_config, on_meta
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.pipeline import Pipeline
from flatgd.studies.landscape import _weights, recipe_of
from flatgd.training import checkpoints
from flatgd.training.checkpoints import fault_of


def command(*words: str) -> str:
    """Why a command is refused."""
    with pytest.raises(FlatGDError) as raised:
        CliRunner().invoke(app, list(words), catch_exceptions=False)
    return str(raised.value)


def test_of_the_command_line(recipe_file: Path, tmp_path: Path) -> None:
    recipe = str(recipe_file)
    assert "no 'nope' in this recipe; it has" in command("label", recipe, "--method", "nope")
    assert "no replies yet of backbone" in command("label", recipe)
    rows = str(write_rows(tmp_path / "x.jsonl", mild_rows(2, seed=0)))
    told = command("data", "convert", "jsonl", rows, "--to", "y", "--speaker", "cat")
    assert told == "--speaker must be bot, human or all, got 'cat'"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.policy.0.share=[0.5, 0.2]", "share must be two rising numbers in 0..1"),
        ("train.snapshots=-1", "snapshots must be a whole number >= 0, got -1"),
        ("methods={x: {method: task_arithmetic}}", "so experts must come from the backbone itself"),
    ],
)
def test_of_recipes(recipe_file: Path, backbone_folder: Path, override: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_validated(load_recipe(recipe_file, [override, f"expert_backbone={backbone_folder}"]))


def test_of_data(tmp_path: Path) -> None:
    user = {"role": "user", "content": "hi"}
    for row, told in (
        ({**PLAIN, "chosen": "a", "rejected": "b"}, "'completion' together with 'chosen'"),
        (
            {"prompt": MESSAGES[:-1], "completion": [user], "label": True},
            "got a message of the user",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            dialogues_from_row(row)
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"train": [3]}))
    with pytest.raises(DataError, match="expected an object with a 'text'"):
        load_bbf(file, "train")
    file.write_text(json.dumps({"reddit_thread": [3]}))
    with pytest.raises(DataError, match="a turn must be an object, got int"):
        load_toxichat(file, "train")
    many = DataError([Problem("x", 1, f"reason {n}") for n in range(23)])
    assert str(many).endswith("... and 3 other reasons")


def test_of_models(tmp_path: Path, backbone_folder: Path, monkeypatch: Any) -> None:
    with pytest.raises(ModelError, match=r"no judge in .*; `flatgd run` builds it"):
        LinearJudge.load(tmp_path)
    settings = JudgeSettings(kind="trained", model=str(backbone_folder))
    with pytest.raises(ModelError, match=r"no judge in .*; `flatgd run` builds it"):
        TrainedJudge.load(settings, tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"has no eos_token; set one and save it"):
        format_for(tiny_blenderbot().config, tokenizer)
    with pytest.raises(ModelError, match="transformers has no model of type 'vit' for this task"):
        on_meta(ViTConfig())
    model = tiny_blenderbot()
    model.get_output_embeddings = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="has no output embeddings"):
        output_head(model)
    monkeypatch.setattr("flatgd.models.loading.is_offline_mode", lambda: False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("flatgd.models.loading.HfApi", lambda: _NoHub())
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load_config("some/model")
    with pytest.raises(UnsupportedError, match="one process sees 2 GPUs"):
        _TwoGpus(str(tmp_path), use_cpu=True)


class _NoHub:
    def model_info(self, *args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no way there")


class _TwoGpus(FlatGDConfig):
    n_gpu = 2  # type: ignore[assignment]


def test_of_runs(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file)
    with pytest.raises(UsageError, match=r"no judge yet at .*; `flatgd run` makes it"):
        load_judges(recipe)
    places = []
    for name in ("a", "b"):
        place = tmp_path / name / "methods/flatgd"
        place.mkdir(parents=True)
        (place / "config.json").write_text("{}")
        shutil.copy(recipe_file, tmp_path / name / "recipe.json")
        places.append(place)
    with pytest.raises(UsageError, match="of different runs; give those of one"):
        recipe_of(places)
    methods = "methods={flatgd: {}, other: {method: flatgd, repel_weight: 5}}"
    with pytest.raises(RecipeError, match="flatgd, other weigh L_S differently"):
        _weights(Pipeline(load_recipe(recipe_file, [methods])).context)


def test_of_expert_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("flatgd.training.trainer.has_plain_head", lambda model, batch: False)
    subject = trainer(tmp_path, expert_cache=str(tmp_path / "states"))
    assert caplog.text.count("cached states cannot replace it; it runs in every step") == 2
    subject.train()


def test_of_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault_of(tmp_path / "none") == "there is no such checkpoint"
    monkeypatch.setattr(checkpoints, "fault_of", lambda folder: "it is not as it was saved")
    with pytest.raises(CheckpointError, match="not as it was saved right after writing"):
        trainer(tmp_path, save_strategy="steps", save_steps=1).train()
