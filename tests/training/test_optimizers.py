"""Optimizers with a train mode: they step, and the weights that come out are those for use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama
from torch import Tensor
from training import ROWS, config, largest_difference, own_trainer

from flatgd import Clean, FlatGDTrainer
from flatgd.training.loop import train

BETA = 0.9


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): gradients at y = (1 - beta) z + beta x; x is used.

    The weights hold y in train mode and x in eval mode.
    """

    def __init__(self, parameters: Any, lr: float = 0.1):
        super().__init__(parameters, {"lr": lr, "is_training": False, "steps": 0})

    def _switch(self, is_training: bool) -> None:
        for group in self.param_groups:
            if group["is_training"] == is_training:
                continue
            group["is_training"] = is_training
            for weight in group["params"]:
                if weight in self.state:
                    x, z = self.state[weight]["x"], self.state[weight]["z"]
                    weight.data.copy_((1 - BETA) * z + BETA * x if is_training else x)

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            if not group["is_training"]:
                raise RuntimeError("the optimizer is not in train mode")
            group["steps"] += 1
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(x=weight.clone(), z=weight.clone())
                state["z"] -= group["lr"] * weight.grad
                state["x"] += (state["z"] - state["x"]) / group["steps"]
                weight.copy_((1 - BETA) * state["z"] + BETA * state["x"])


def schedule_free(model: Any) -> tuple:
    optimizer = ScheduleFree(model.parameters())
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


def made(folder: Path, **fields: Any) -> FlatGDTrainer:
    model = tiny_llama()
    fields = {"max_grad_norm": 0.0, **fields}
    return FlatGDTrainer(
        model, config(folder, **fields), train_dataset=ROWS, processing_class=byte_tokenizer(),
        method=Clean(), optimizers=schedule_free(model),
    )  # fmt: skip


def by_hand(subject: FlatGDTrainer, steps: int) -> dict[str, Tensor]:
    """The averages x after some steps of plain gradients of the mean NLL, written once more."""
    model = tiny_llama()
    batches = [
        batch for _ in range(steps) for batch in subject.get_train_dataloader()
    ]  # one order for each epoch, as the sampler is asked anew
    z = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = {name: value.clone() for name, value in z.items()}
    for step, batch in enumerate(batches[:steps], start=1):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_((1 - BETA) * z[name] + BETA * x[name])
        model.zero_grad()
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=-100
        ).backward()
        for name, weight in model.named_parameters():
            z[name] -= 0.1 * weight.grad
            x[name] += (z[name] - x[name]) / step
    return x


def test_the_averages_come_out(tmp_path: Path) -> None:
    """Against the same sums by hand; of one batch a step, so that no order matters."""
    whole = {"per_device_train_batch_size": 16, "max_steps": 3}
    subject = made(tmp_path, **whole)
    subject.train()
    wanted = by_hand(made(tmp_path / "other", **whole), 3)
    assert largest_difference(wanted, subject.model.state_dict()) < 1e-5
    raw = subject.optimizer.optimizer.state
    apart = max(float((s["x"] - s["z"]).abs().max()) for s in raw.values())
    assert apart > 1e-4  # or nothing would be tested


def test_a_resume_is_exact(tmp_path: Path) -> None:
    each = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = made(tmp_path / "a", **each)
    whole.train()
    (tmp_path / "a").rename(tmp_path / "b")
    for path in (tmp_path / "b").glob("checkpoint-4"):
        path.rename(tmp_path / "later")
    resumed = made(tmp_path / "b", **each)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(whole.model.state_dict(), resumed.model.state_dict()) == 0.0


def test_snapshots_hold_the_averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        FlatGDTrainer, "create_optimizer",
        lambda self, model=None: setattr(self, "optimizer", ScheduleFree(self.model.parameters())),
    )  # fmt: skip
    fields = {"lr_scheduler_type": "constant", "learning_rate": 0.1, "max_grad_norm": 0.0}
    weights = []
    for name, more in (("a", {"max_steps": 4, "snapshots": 1}), ("b", {"max_steps": 2})):
        model = tiny_llama()
        settings = config(tmp_path / name, **fields, **more)
        train(model, byte_tokenizer(), ROWS, settings, Clean())
        weights.append(model)
    snapshot = type(weights[0]).from_pretrained(tmp_path / "a/path/2", dtype=torch.float32)
    assert largest_difference(snapshot.state_dict(), weights[1].state_dict()) < 1e-6


def test_on_another_trainer(tmp_path: Path) -> None:
    subject = own_trainer(tmp_path, tiny_llama)
    subject.optimizer, subject.lr_scheduler = schedule_free(subject.model)
    subject.train()
    assert subject.state.global_step == 3
