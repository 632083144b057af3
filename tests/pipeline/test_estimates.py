"""The memory estimate: what can be counted is counted exactly."""

from pathlib import Path

import pytest
import torch
from conftest import tiny_blenderbot, tiny_llama
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.models.adapters import with_adapter
from flatgd.pipeline import estimates
from flatgd.pipeline import plan as plans
from flatgd.pipeline.disk_space import disk_of
from flatgd.pipeline.estimates import cache_bytes
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.plan import Plan, states_bytes
from flatgd.pipeline.timing import duration
from flatgd.pipeline.training_memory import estimate
from flatgd.training import FlatGDConfig


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
def test_weights_gradients_and_optimizer_are_counted(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    size = 4 * sum(p.numel() for p in model.parameters())
    found = estimate(model.config, 4, 16, 8)
    assert (found.weights, found.gradients, found.optimizer) == (3 * size, 4 * size, 2 * size)
    assert found.activations > 0
    assert estimate(model.config, 4, 16, 8, method="plain").gradients == size
    shared = estimate(model.config, 4, 16, 8, processes=4, strategy="fsdp2")
    assert shared.weights == 2 * size + size / 4
    assert shared.optimizer == size / 2
    assert estimate(model.config, 4, 16, 8, experts="none").weights == size


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path, targets: object) -> None:
    for make in (tiny_blenderbot, tiny_llama):
        config = FlatGDConfig(output_dir=str(tmp_path), lora_rank=3, lora_targets=targets)
        model = with_adapter(make(), config)
        wanted = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        found = estimate(
            make().config, 4, 16, 8, lora_rank=3, lora_targets=targets, experts="adapters"
        )
        assert found.optimizer == 2 * wanted
        assert found.weights == 4 * sum(p.numel() for p in make().parameters()) + 3 * wanted


def test_activations_grow_with_rows_and_shrink_with_checkpoints() -> None:
    config = tiny_llama().config
    few, many = (estimate(config, rows, 32, 16).activations for rows in (2, 8))
    assert many == pytest.approx(4 * few, rel=0.05)
    assert estimate(config, 8, 32, 16, checkpointing=True).activations < many / 2


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cache_of_generation_is_counted(make, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    """By the tensors of a real one: three rows of seven tokens."""
    model = make().to(dtype).eval()
    ids = torch.full((3, 7), 5)
    is_two = model.config.is_encoder_decoder
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if is_two else {})}
    found = model(**given, use_cache=True)["past_key_values"]
    parts = [found.self_attention_cache, found.cross_attention_cache] if is_two else [found]
    taken = sum(
        t.nbytes for part in parts for layer in part.layers for t in (layer.keys, layer.values)
    )
    assert cache_bytes(model.config, dtype) * 21 == taken


def test_experts_are_full_adapters_cached_or_none() -> None:
    config = tiny_llama().config
    weights = {
        kind: estimate(config, 4, 16, 8, experts=kind, lora_rank=2, expert_rank=2).weights
        for kind in ("none", "cached", "adapters", "apart", "full")
    }
    whole = 4 * sum(p.numel() for p in tiny_llama().parameters())
    adapters = weights["adapters"] - weights["none"]
    assert weights["full"] - weights["none"] == 2 * whole
    assert weights["apart"] - weights["none"] == whole + adapters
    head = 4 * tiny_llama().get_output_embeddings().weight.numel()
    assert weights["cached"] - weights["none"] == 2 * head
    half = estimate(config, 4, 16, 8, experts="full", expert_bytes=2, lora_rank=2, base_bytes=2)
    assert half.weights == pytest.approx((weights["full"] - adapters / 2) / 2 + adapters / 2)


def plan_of(recipe_file: Path, *overrides: str) -> Plan:
    recipe = load_recipe(recipe_file, list(overrides))
    return Plan(recipe, load_validated(recipe), lambda name: name)


def test_larger_cards_fit_larger_micro_batches(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card of one GB has no room beside CUDA's own."""
    plan = plan_of(recipe_file)
    lengths = estimates.lengths_of(plan)
    monkeypatch.setattr(estimates, "CARDS", (0.8, 0.95, 24))
    rows = [rows for _, rows in estimates.fits(plan, "flatgd", lengths)]
    whole = plan.config("flatgd", plan.recipe.output).per_device_train_batch_size
    assert rows[0] == 0
    assert rows == sorted(rows)
    assert rows[2] == whole


def test_states_are_cached_where_that_is_cheaper(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 24 policy rows: one step of four rows is cheaper live, ten steps are not."""

    def cache(*overrides: str) -> str | None:
        plan = plan_of(recipe_file, *overrides)
        return plan.config("flatgd", plan.recipe.output).expert_cache

    few, many = "train.max_steps=1", "train.max_steps=10"
    assert cache(few) is None
    states = str(load_recipe(recipe_file, []).output / "states")
    assert cache(many) == states
    none = "train.expert_cache=none"
    assert cache(many, none) is None
    assert cache(few, "train.expert_cache=states") == states
    kept = [disk_of(plan_of(recipe_file, many, *more)).kept for more in ((), (none,))]
    assert kept[0] - kept[1] == states_bytes(
        load_recipe(recipe_file, []), plan_of(recipe_file).sets
    )
    monkeypatch.setattr(plans, "free_bytes", lambda folder: 1000)
    assert cache(many) is None


@pytest.mark.parametrize("way", ["auto", "lookahead"])
def test_check_times_each_stage(recipe_file: Path, way: str) -> None:
    chosen = f"train.flatness_method={way}"
    told = CliRunner().invoke(app, ["check", str(recipe_file), "--time", "--set", chosen])
    assert told.exit_code == 0, told.output
    lines = [line.split()[1] for line in told.output.splitlines() if line.startswith("time: ")]
    assert lines[:2] == ["clean_expert", "toxic_expert"]
    assert lines[-3:] == ["generation", "scoring", "all"]
    assert not (load_recipe(recipe_file, []).output / "methods").exists()


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_check_tells_it(recipe_file: Path) -> None:
    told = CliRunner().invoke(app, ["check", str(recipe_file), "--processes", "2"])
    assert told.exit_code == 0, told.output
    assert "memory: flatgd" in told.output
    assert "in each process" in told.output
