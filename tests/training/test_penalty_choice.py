"""Which way a training takes to its penalty, and its step length."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_blenderbot
from training import config, trainer

from flatgd.flatness import FlatGradient, StepError
from flatgd.training import penalty_choice


@pytest.mark.parametrize(
    ("fields", "way"),
    [
        ({}, "finite_difference"),
        ({"bf16": True}, "exact"),
        ({"bf16": True, "flatness_method": "fast"}, "fast"),
        ({"bf16": True, "difference": "central"}, "finite_difference"),
        ({"bf16": True, "rho": 1e-2}, "finite_difference"),
        ({"bf16": True, "penalty_momentum": 0.5}, "finite_difference"),
        ({"bf16": True, "torch_compile": True}, "finite_difference"),
    ],
)
def test_the_way_that_auto_takes(tmp_path: Path, fields: dict[str, Any], way: str) -> None:
    given = config(tmp_path, **{"rho": None, **fields})
    in_half = bool(fields.get("bf16"))
    assert penalty_choice.chosen_way(given, in_half, tiny_blenderbot(), False) == way


def test_shards_and_flash_attention_have_no_second_derivative(tmp_path: Path) -> None:
    given, model = config(tmp_path, rho=None), tiny_blenderbot()
    assert penalty_choice.chosen_way(given, True, model, False) == "exact"
    assert penalty_choice.chosen_way(given, True, model, True) == "finite_difference"
    model.config._attn_implementation = "flash_attention_2"
    assert penalty_choice.chosen_way(given, True, model, False) == "finite_difference"


def test_the_first_penalised_step_measures_rho_and_checkpoints_keep_it(tmp_path: Path) -> None:
    subject = trainer(tmp_path, rho=None, max_steps=4, penalty_warmup=0.25, save_steps=2,
                      save_strategy="steps")  # fmt: skip
    subject.train()
    log = [entry for entry in subject.state.log_history if "lm" in entry]
    assert ["penalty_error" in entry for entry in log] == [False, True, False, False]
    rho = penalty_choice.kept(subject.state)["rho"]
    assert rho in penalty_choice.RHOS
    assert log[1]["gradient_evaluations"] == 2 + 1 + 2 * len(penalty_choice.RHOS)
    again = trainer(tmp_path, rho=None, max_steps=4, penalty_warmup=0.25)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert penalty_choice.kept(again.state)["rho"] == rho
    assert not any("penalty_error" in e for e in again.state.log_history if e["step"] > 2)


def test_noise_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A step of 1e-12 is lost in float32."""
    subject = trainer(tmp_path, rho=1e-12, max_steps=3)
    with caplog.at_level(logging.WARNING):
        subject.train()
    assert caplog.text.count("the penalty's gradient is mostly noise. With rho 1e-12") == 1


def test_the_check_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty_choice, "CHECKED_EVERY", 2)
    subject = trainer(tmp_path, max_steps=4)
    subject.train()
    log = [entry for entry in subject.state.log_history if "lm" in entry]
    assert ["penalty_error" in entry for entry in log] == [True, False, True, False]


@pytest.mark.parametrize(
    "message",
    [
        "derivative for aten::fancy_attention_backward is not implemented",
        "mm(): functions with out=... arguments don't support automatic differentiation",
    ],
)
def test_an_operation_without_a_second_derivative(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subject = trainer(tmp_path, rho=None, bf16=True, max_steps=2)

    def refuse(*given: Any) -> FlatGradient:
        raise RuntimeError(message)

    monkeypatch.setattr("flatgd.training.penalty_passes.exact", refuse)
    with caplog.at_level(logging.WARNING):
        subject.train()
    assert caplog.text.count(f"this model has no second derivative ({message})") == 1
    assert subject.flatness_method == "finite_difference"


def test_another_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = trainer(tmp_path, rho=None, bf16=True, max_steps=2)

    def fail(*given: Any) -> FlatGradient:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("flatgd.training.penalty_passes.exact", fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        subject.train()


def test_experts_keep_their_precision_under_autocast(tmp_path: Path) -> None:
    """Rounded weights would be another expert."""
    subject = trainer(tmp_path, rho=None, bf16=True)
    batch = subject.data_collator(subject.examples[:8])
    with torch.autocast("cpu", torch.bfloat16):
        (inside,) = subject.method.prepare([batch])
    (outside,) = subject.method.prepare([batch])
    assert torch.equal(inside["clean_expert"], outside["clean_expert"])


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        ((0.2, 0.1, 0.3), 1),  # the smallest
        ((0.01, 0.02, 0.3), 1),  # the longest of the small ones
        ((0.01, 0.04, 0.05), 2),
        ((0.2, 0.1, 0.1), 2),
    ],
)
def test_the_longest_step_with_a_small_error_wins(errors: tuple, chosen: int) -> None:
    found = [StepError(rho, error) for rho, error in zip((1e-4, 3e-4, 1e-3), errors, strict=True)]
    assert penalty_choice.best(found) == found[chosen]
