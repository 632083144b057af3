"""The memory estimate: what can be counted is counted exactly."""

from pathlib import Path

import pytest
from conftest import tiny_blenderbot, tiny_llama
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.models.adapters import with_adapter
from flatgd.pipeline.estimates import estimate
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


def test_check_tells_it(recipe_file: Path) -> None:
    told = CliRunner().invoke(app, ["check", str(recipe_file), "--processes", "2"])
    assert told.exit_code == 0, told.output
    assert "memory: flatgd" in told.output
    assert "in each process" in told.output
