"""Frozen models in half precision: which, how they are loaded, and where a run says it."""

import json
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from families import save_family
from small_recipe import run_recipe, write_recipe
from training import config

from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError
from flatgd.models import dtype as precision
from flatgd.models.adapters import load, load_together, save, with_adapter
from flatgd.models.dtype import checkpoint_dtype, dtype_for
from flatgd.models.heads import reply_log_probs
from flatgd.models.loading import load_model
from flatgd.pipeline.pipeline import Pipeline

HALF, WHOLE = torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("chosen", "own", "on_gpu", "wanted"),
    [
        ("auto", HALF, True, HALF),
        ("auto", torch.float16, True, HALF),
        ("auto", HALF, False, WHOLE),
        ("auto", WHOLE, True, WHOLE),
        ("auto", None, True, WHOLE),
        ("float32", HALF, True, WHOLE),
        ("bfloat16", WHOLE, False, HALF),
    ],
)
def test_which_precision(
    chosen: str, own: torch.dtype, on_gpu: bool, wanted: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: on_gpu)
    assert dtype_for(chosen, own) == wanted


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A checkpoint in bfloat16."""
    folder = save_family("qwen2", tmp_path / "half")
    load_model(folder).bfloat16().save_pretrained(folder)
    return folder


def test_the_checkpoint_says_its_precision(half: Path) -> None:
    assert checkpoint_dtype(str(half)) == HALF
    assert next(load_model(half).parameters()).dtype == WHOLE
    assert next(load_model(half, HALF).parameters()).dtype == HALF


def test_an_adapter_in_half_precision_stays_beside_its_base(tmp_path: Path) -> None:
    """Merged and rounded, a small adapter would be changed by a tenth and more."""
    tiny_llama().bfloat16().float().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    model = with_adapter(load_model(tmp_path / "base"), config(tmp_path, lora_rank=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn_like(weight) * 1e-4)
    save(model, tmp_path / "adapter")
    apart = load(tmp_path / "adapter", HALF)
    kinds = {"lora_" in name: p.dtype for name, p in apart.named_parameters()}
    assert kinds == {True: WHOLE, False: HALF}
    key = "model.layers.0.mlp.up_proj.weight"
    base, merged = (load(tmp_path / name).state_dict()[key] for name in ("base", "adapter"))
    learnt, left = merged - base, merged.bfloat16().float() - base
    assert (learnt - left).norm() > 0.1 * learnt.norm()


def test_adapters_share_a_base_of_their_precision(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    for name in ("a", "b"):
        model = with_adapter(load_model(tmp_path / "base"), config(tmp_path, lora_rank=2))
        save(model, tmp_path / name)
    paths = {name: str(tmp_path / name) for name in ("a", "b")}
    same = load_together(paths, dtypes={"a": HALF, "b": HALF})
    heads = [same[name].get_base_model().lm_head.weight for name in paths]
    assert heads[0].data_ptr() == heads[1].data_ptr()
    assert heads[0].dtype == HALF
    apart = load_together(paths, dtypes={"a": HALF})
    assert apart["b"].get_base_model().lm_head.weight.dtype == WHOLE


def test_a_run_in_bfloat16_says_so(tmp_path: Path, half: Path) -> None:
    extra = "dtype: bfloat16\ndtypes: {scorer: float32}\nmethods: {clean: {}, flatgd: {}}\n"
    recipe = write_recipe(tmp_path, half, extra)
    run_recipe(recipe)
    tables = (tmp_path / "run/report/tables.md").read_text()
    models = "backbone, clean_expert, toxic_expert, clean, flatgd"
    assert f"| replies and contrast of {models} | bfloat16 |" in tables
    assert "| perplexity and relevance | float32 |" in tables
    assert "| judge linear | float32 |" in tables
    first = (tmp_path / "run/scores/flatgd.jsonl").read_bytes()
    assert "changed" in run_recipe(recipe, "dtype=float32")
    assert (tmp_path / "run/scores/flatgd.jsonl").read_bytes() != first
    saved = json.loads((tmp_path / "run/methods/flatgd/config.json").read_text())
    assert saved["dtype"] == "float32"  # what is trained stays float32


def test_the_models_of_a_run_have_the_precision_of_their_checkpoints(
    tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU: the backbone's own, float32 for what is trained whole, the base's for adapters."""
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda: True)
    extra = (
        "methods: {clean: {}, flatgd: {lora_rank: 2}, merged: {method: task_arithmetic}}\n"
        "dtypes: {clean_expert: bfloat16}\n"
    )
    plan = Pipeline(load_recipe(write_recipe(tmp_path, half, extra))).context.plan
    found = {name: plan.dtype(name) for name in plan.recipe.models}
    assert found == {
        "backbone": HALF, "clean_expert": HALF, "toxic_expert": WHOLE, "clean": WHOLE,
        "flatgd": HALF, "merged": WHOLE,
    }  # fmt: skip
    assert plan.base_dtype("flatgd") == HALF
    assert plan.base_dtype("clean") == WHOLE
    assert plan.dtype_of_role("scorer", str(half)) == HALF


def test_an_unknown_model_is_named(tmp_path: Path, half: Path) -> None:
    recipe = write_recipe(tmp_path, half, "dtypes: {scorrer: float32}\n")
    with pytest.raises(RecipeError, match="there is no 'scorrer'; did you mean 'scorer'"):
        load_recipe(recipe)


def test_bfloat16_changes_a_distribution_little(half: Path) -> None:
    """Weights that bfloat16 holds exactly; only the computing is rounded."""
    models = load_model(half).eval(), load_model(half, HALF).eval()
    batch = {
        "input_ids": torch.arange(3, 19)[None], "attention_mask": torch.ones(1, 16).long(),
        "targets": torch.arange(4, 20)[None],
    }  # fmt: skip
    with torch.no_grad():
        whole, rounded = (reply_log_probs(model, batch) for model in models)
    assert rounded.dtype == WHOLE
    assert 0 < float((whole - rounded).abs().max()) < 0.05
