"""Precision, checkpointing, compiled blocks and other Trainers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from reference import penalised_gradient, relative_error
from torch import nn
from training import DESCENT, ROWS, config, largest_difference, trained, trainer
from transformers import Trainer

from flatgd.data.jsonl import dialogues_from_row
from flatgd.families import family_of
from flatgd.flatness import Terms
from flatgd.losses import negative_log_likelihood
from flatgd.methods.base import Method, Scored
from flatgd.models import reply_log_probs, reply_tokens
from flatgd.training.mixin import FlatnessMixin


def test_rho_follows_the_precision(tmp_path: Path) -> None:
    assert config(tmp_path).penalty_settings().rho == 3e-4
    assert config(tmp_path, bf16=True).penalty_settings().rho == 1e-2
    assert config(tmp_path, rho=0.1).penalty_settings().rho == 0.1
    assert config(tmp_path).penalty_settings().share == 0.3
    assert config(tmp_path, flatness_weight=0).penalty_settings() is None


def test_bf16_autocast_sees_the_moved_weights(tmp_path: Path) -> None:
    """Were autocast to go on with cached weights, both passes would agree and the penalty be 0."""
    subject = trainer(tmp_path, bf16=True, flatness_weight=1.0)
    batch = subject.data_collator(subject.examples[:8])
    subject.training_step(subject.model, batch)
    assert subject._pending["penalty_share"][0] > 1e-3


@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast", "exact"])
def test_checkpointing_changes_nothing_but_memory(tmp_path: Path, flatness_method: str) -> None:
    """Non-reentrant, Trainer's default; dropout on, as recomputing must draw the same masks."""
    weights = []
    for place, checkpointing in (("a", False), ("b", True)):
        subject = trainer(
            tmp_path / place,
            model=tiny_blenderbot(dropout=0.2),
            flatness_method=flatness_method,
            activation_checkpointing=checkpointing,
            **DESCENT,
        )
        subject.train()
        weights.append({name: value.clone() for name, value in subject.model.state_dict().items()})
    assert largest_difference(*weights) <= 1e-5


@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_walk_the_same_way(
    tmp_path: Path, flatness_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BACKEND", "MODE", "USE_REGIONAL_COMPILATION"):  # Trainer sets them for good
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no")
        monkeypatch.delenv(f"ACCELERATE_DYNAMO_{name}")
    fields = {"flatness_method": flatness_method, "micro_batch_size": 4, **DESCENT}
    plain = trained(tmp_path / "a", **fields)
    compiled = trained(
        tmp_path / "b", torch_compile=True, torch_compile_backend="aot_eager", **fields
    )
    assert largest_difference(plain, compiled) <= 1e-5


class OwnTrainer(FlatnessMixin, Trainer):
    """Another Trainer with a loss of its own, under the penalty."""

    class Loss(Method):
        name, does, is_flat = "own", "trained.", True

        def terms(self, policy: nn.Module, batch: Any, totals: Any) -> Scored:
            targets, _ = reply_tokens(batch)
            nll = negative_log_likelihood(reply_log_probs(policy, batch), targets)
            loss = nll.sum() / totals.tokens
            return Scored(Terms(loss, loss.new_zeros(())), {"loss": loss.detach()})

    method = Loss()


def test_the_penalty_on_another_trainer_with_its_own_loss(tmp_path: Path) -> None:
    """||grad NLL||^2 over the whole batch, against double backward."""
    model = tiny_llama()
    family = family_of(model.config, byte_tokenizer(), 64, 32)
    rows = [family.encode(d) for row in ROWS for d in dialogues_from_row(row)]
    subject = OwnTrainer(
        model=model,
        args=config(tmp_path, flatness_weight=0.5, difference="central", micro_batch_size=3),
        train_dataset=rows,
        data_collator=family.collate,
    )
    batch = family.collate(rows[:8])
    targets, _ = reply_tokens(batch)

    def nll() -> torch.Tensor:
        return negative_log_likelihood(reply_log_probs(model, batch), targets).mean()

    parameters = list(model.parameters())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = penalised_gradient(parameters, nll, lambda: torch.zeros(()), 0.5)
    subject.state.max_steps = 1
    subject.training_step(subject.model, batch)
    assert relative_error([p.grad for p in parameters], wanted) < 1e-3
    subject.train()
    assert subject.state.log_history[0]["penalty_share"] > 0
