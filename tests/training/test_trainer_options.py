"""Precision, checkpointing, compiled blocks and other Trainers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_blenderbot, tiny_llama
from reference import penalised_gradient, relative_error
from training import DESCENT, OwnTrainer, config, largest_difference, own_trainer, trained, trainer
from transformers import Trainer

from flatgd.errors import UnsupportedError
from flatgd.training.config import CHECKPOINTING


def test_rho_follows_the_precision(tmp_path: Path) -> None:
    assert config(tmp_path, rho=None).penalty_settings().rho == 3e-4
    assert config(tmp_path, rho=None, bf16=True).penalty_settings().rho == 1e-2
    assert config(tmp_path, rho=0.1).penalty_settings().rho == 0.1
    assert config(tmp_path).penalty_settings().share == 0.3
    assert config(tmp_path, flatness_weight=0).penalty_settings() is None


def test_bf16_autocast_sees_the_moved_weights(tmp_path: Path) -> None:
    """Were autocast to go on with cached weights, both passes would agree and the penalty be 0."""
    subject = trainer(tmp_path, bf16=True, flatness_weight=1.0)
    batch = subject.data_collator(subject.examples[:8])
    subject.training_step(subject.model, batch)
    assert subject.step_state.figures["penalty_share"][0] > 1e-3


@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast", "lookahead", "exact"])
def test_checkpointing_changes_nothing_but_memory(tmp_path: Path, flatness_method: str) -> None:
    """Non-reentrant, Trainer's default; dropout on, as recomputing must draw the same masks."""
    weights = []
    for place, checkpointing in (("a", False), ("b", True)):
        subject = trainer(
            tmp_path / place,
            model=tiny_blenderbot(dropout=0.2),
            flatness_method=flatness_method,
            rho=None if flatness_method == "lookahead" else 3e-4,
            **{CHECKPOINTING: checkpointing},
            **DESCENT,
        )
        subject.train()
        weights.append({name: value.clone() for name, value in subject.model.state_dict().items()})
    assert largest_difference(*weights) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_walk_the_same_way(
    tmp_path: Path, flatness_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BACKEND", "MODE", "USE_REGIONAL_COMPILATION"):  # Trainer sets them for good
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    fields = {"flatness_method": flatness_method, "max_steps": 2, **DESCENT}
    plain = trained(tmp_path / "a", **fields)
    compiled = trained(
        tmp_path / "b", torch_compile=True, torch_compile_backend="aot_eager", **fields
    )
    assert largest_difference(plain, compiled) <= 1e-5


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
def test_the_penalty_on_another_trainer_with_its_own_loss(tmp_path: Path, make: Any) -> None:
    """||grad loss||^2 over the whole batch, against double backward of the model's own loss."""
    fields = {"flatness_weight": 0.5, "difference": "central", "micro_batch_size": 3}
    subject = own_trainer(tmp_path, make, **fields)
    batch = subject.data_collator([subject.train_dataset[row] for row in range(8)])
    parameters = list(subject.model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = penalised_gradient(
            parameters, lambda: subject.model(**batch).loss, lambda: torch.zeros(()), 0.5
        )
    subject.state.max_steps = 1
    subject.training_step(subject.model, batch)
    assert relative_error([p.grad for p in parameters], wanted) < 1e-3
    subject.train()
    assert subject.state.log_history[0]["penalty_share"] > 0


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
def test_lambda_zero_is_the_other_trainer(tmp_path: Path, make: Any) -> None:
    weights = []
    for kind, cut in ((Trainer, {}), (OwnTrainer, {"micro_batch_size": 3})):
        subject = own_trainer(tmp_path, make, kind, flatness_weight=0, **cut, **DESCENT)
        subject.train()
        weights.append(subject.model.state_dict())
    assert largest_difference(*weights) <= 1e-5


def test_a_batch_without_rows_is_refused(tmp_path: Path) -> None:
    """As TRL makes them with padding_free."""
    subject = own_trainer(tmp_path, tiny_llama)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(UnsupportedError, match=r"needs attention_mask, .*padding_free=False"):
        subject.training_step(subject.model, {"input_ids": ids, "labels": ids})
