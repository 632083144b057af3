"""What a run takes for its own: its folder, its inputs, the versions it was built with."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from conftest import byte_tokenizer, tiny_llama
from peft import LoraConfig, get_peft_model
from rich.console import Console

from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import load_recipe
from flatgd.errors import UsageError
from flatgd.models.text_encoder import TextEncoder
from flatgd.pipeline.context import BuildResult, Context, model_fingerprint
from flatgd.pipeline.pipeline import Pipeline
from flatgd.runtime.display import Display


def test_a_folder_with_other_files_is_refused(recipe_file: Path) -> None:
    folder = recipe_file.parent / "mine"
    (folder / "report/figures").mkdir(parents=True)
    plot = folder / "report/figures/plot.svg"
    plot.write_text("<svg/>")
    with pytest.raises(UsageError, match=r"mine is not empty and holds no run of flatgd"):
        Context(load_recipe(recipe_file, ["output=mine"]))
    with pytest.raises(UsageError, match="is not empty and holds no run"):
        Context(load_recipe(recipe_file, ["output=."]))
    assert plot.exists()
    (recipe_file.parent / "empty").mkdir()
    Context(load_recipe(recipe_file, ["output=empty"]))
    Context(load_recipe(recipe_file, ["output=empty"]))


def test_every_file_of_a_model_counts(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    found = [model_fingerprint(str(tmp_path))]
    for name in ("pytorch_model.bin", "modeling.py", "additional_chat_templates/tool.jinja"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        found.append(model_fingerprint(str(tmp_path)))
    assert len(set(found)) == 4
    for name in ("README.md", ".cache/x"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        assert model_fingerprint(str(tmp_path)) == found[-1]


def test_the_base_of_an_adapter_counts(tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    tiny_llama(0).save_pretrained(base)
    model = tiny_llama(0)
    model.name_or_path = str(base)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(str(folder))
    before = model_fingerprint(str(folder))
    tiny_llama(1).save_pretrained(base)
    assert model_fingerprint(str(folder)) != before


def test_precision_from_the_environment_counts(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file)
    before = Context(recipe).plan.fingerprint("flatgd")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert Context(recipe).plan.fingerprint("flatgd") != before
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert Context(recipe).plan.fingerprint("flatgd") == before


def test_a_run_tokenizes_each_row_once(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For two experts and two methods, and for another seed of the same run."""
    texts: list[str] = []
    original = TextEncoder.ids

    def ids(self: TextEncoder, given: Sequence[str]) -> list[list[int]]:
        texts.extend(given)
        return original(self, given)

    methods = "methods={safety_loss: {}, unlikelihood: {}}"
    overrides = ["train.max_steps=1", "train.save_strategy=no", methods]
    job = Pipeline(load_recipe(recipe_file, overrides), Display(quiet=True))
    monkeypatch.setattr(TextEncoder, "ids", ids)
    job.models.experts()
    rows = set(job.context.sets.policy)
    replies = {row.reply for row in rows}
    assert sum(text in replies for text in texts) == len(rows)
    before = len(texts)
    for name in ("safety_loss", "unlikelihood"):
        job.models.train(name)
    job.variant("seeds/1", seed=1).models.experts()
    assert len(texts) == before


def test_other_versions_are_shown_once_and_rebuild_nothing(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = StringIO()

    def build(path: Path) -> BuildResult:
        path.write_text("x")
        return BuildResult("built")

    recipe, display = load_recipe(recipe_file), Display(Console(file=shown, width=300))
    for name in ("one", "two"):
        Context(recipe, display).build(name, "k", build)
    old = {"torch": "2.0.0", "transformers": "4.0.0"}
    monkeypatch.setattr(ArtifactStore, "built_with", lambda store, name: old)
    context = Context(recipe, display)
    for name in ("one", "two"):
        context.build(name, "k", build)
    assert shown.getvalue().count("built with torch 2.0.0 (now ") == 1
    assert shown.getvalue().count(" built (") == 1
