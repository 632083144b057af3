"""A resumed training is the same training: a change of its result is refused by name."""

import dataclasses
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from peft import LoraConfig, get_peft_model
from torch.optim.lr_scheduler import LambdaLR
from training import ROWS, config, experts, largest_difference
from transformers import TrainerCallback

from flatgd import Clean, FlatGDConfig, FlatGDTrainer, SafetyLoss
from flatgd.errors import CheckpointError
from flatgd.methods import NPO, Unlikelihood
from flatgd.training import resume_fingerprint
from flatgd.training.checkpoints import compare
from flatgd.training.config import CHECKPOINTING

EACH_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def safety(one: int = 11, other: int = 12, **options: Any) -> SafetyLoss:
    return SafetyLoss(
        clean_expert=tiny_blenderbot(one), toxic_expert=tiny_blenderbot(other), **options
    )


def made(folder: Path, given: dict | None = None, **fields: Any) -> FlatGDTrainer:
    """A trainer; `given` are its other arguments, over those of a plain one."""
    plain = {"method": Clean(), "train_dataset": ROWS, "processing_class": byte_tokenizer()}
    given = {**plain, **(given or {})}
    model = given.pop("model", None) or tiny_blenderbot()
    if "optimizers" in given:
        given["optimizers"] = given["optimizers"](model)
    return FlatGDTrainer(model, config(folder, **EACH_STEP, **fields), **given)


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = True


def went_on(folder: Path, then: tuple[dict, dict], now: tuple[dict, dict]) -> FlatGDTrainer:
    """One step as `then`, and the rest as `now`."""
    first = made(folder, then[0], **then[1])
    first.add_callback(Stop())
    first.train()
    second = made(folder, now[0], **now[1])
    second.train(resume_from_checkpoint=True)
    return second


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"adam_beta1": 0.5}, "adam_beta1: was 0.9, now 0.5"),
        ({"adam_epsilon": 1e-6}, "adam_epsilon"),
        ({"optim": "sgd"}, "optim: was 'adamw_torch"),
        ({"optim_args": "amsgrad=true"}, "optim_args"),
        ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type: was 'linear', now 'cosine'"),
        ({"lr_scheduler_kwargs": {"x": 1}, "lr_scheduler_type": "constant"}, "lr_scheduler_kwargs"),
        ({"warmup_steps": 1}, "warmup_steps"),
        ({"weight_decay": 0.1}, "weight_decay"),
        ({"max_grad_norm": 0.5}, "max_grad_norm"),
        ({"seed": 1}, "seed: was 42, now 1"),
        ({"data_seed": 1}, "data_seed"),
        ({"per_device_train_batch_size": 4}, "batch: was 8, now 4"),
        ({"bf16": True}, "precision: was 'no', now 'bf16'"),
        ({"neftune_noise_alpha": 1.0}, "neftune_noise_alpha"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"penalty_share": 0.7}, "penalty_share: was None, now 0.7"),
        ({"max_reply_tokens": 8}, "training rows"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy"),
    ],
)
def test_a_changed_setting_is_named(tmp_path: Path, fields: dict, name: str) -> None:
    with pytest.raises(CheckpointError, match=f"belongs to another training: .*{re.escape(name)}"):
        went_on(tmp_path, ({}, {}), ({}, fields))


def test_every_field_either_counts_or_is_listed(tmp_path: Path) -> None:
    """A field of a later transformers counts until it is listed as one of no effect."""
    counted = resume_fingerprint.settings_of(config(tmp_path), evaluation_counts=True)
    known = {field.name for field in dataclasses.fields(FlatGDConfig)}
    assert counted.keys() == known - resume_fingerprint.NO_EFFECT
    assert {"rho", "learning_rate", "adam_beta2", "max_steps", "optim_target_modules"} <= set(
        counted
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"micro_batch_size": 2},
        {"logging_steps": 2},
        {"save_total_limit": 1},
        {"save_only_model": True},
        {"per_device_eval_batch_size": 1},
        {"run_name": "another"},
        {CHECKPOINTING: True},
        {"dataloader_num_workers": 1},
        {"eval_steps": 3},
    ],
)
def test_what_changes_no_weights_may_change(tmp_path: Path, fields: dict) -> None:
    assert went_on(tmp_path, ({}, {}), ({}, fields)).state.global_step == 2


@pytest.mark.parametrize(
    ("then", "now", "name"),
    [
        (safety, partial(safety, divergence="kl"), "method.divergence: was 'js', now 'kl'"),
        (safety, partial(safety, 11, 13), "toxic_expert weights"),
        (safety, partial(safety, repel_weight=0.5), "method.repel_weight: was 2.0, now 0.5"),
        (Clean, safety, "method: was 'clean', now 'safety_loss'"),
        (Unlikelihood, partial(Unlikelihood, weight=2.0), "method.weight: was 1.0, now 2.0"),
        (
            lambda: NPO(backbone=tiny_blenderbot(0)),
            lambda: NPO(backbone=tiny_blenderbot(1)),
            "backbone weights",
        ),
    ],
)
def test_another_method_is_named(tmp_path: Path, then: Any, now: Any, name: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(name)):
        went_on(tmp_path, ({"method": then()}, {}), ({"method": now()}, {}))


def test_a_method_of_the_callers_own_differs_from_ours(tmp_path: Path) -> None:
    class Mine(Clean):
        """The same name and options."""

    with pytest.raises(
        CheckpointError, match=r"method\.class: was 'flatgd\.methods\.clean\.Clean'"
    ):
        went_on(tmp_path, ({}, {}), ({"method": Mine()}, {}))


def test_the_same_experts_live_or_cached_are_the_same(tmp_path: Path) -> None:
    """Also those that were loaded again."""
    then = {"method": safety()}, {}
    went_on(tmp_path, then, ({"method": safety()}, {"expert_cache": str(tmp_path / "states")}))


def adapted(seed: int, rank: int = 2) -> Any:
    torch.manual_seed(0)
    return get_peft_model(tiny_llama(seed), LoraConfig(r=rank, target_modules=["q_proj"]))


def test_another_base_below_the_same_adapter_is_named(tmp_path: Path) -> None:
    went_on(tmp_path / "a", ({"model": adapted(0)}, {}), ({"model": adapted(0)}, {}))
    with pytest.raises(CheckpointError, match="frozen weights: was"):
        went_on(tmp_path / "b", ({"model": adapted(0)}, {}), ({"model": adapted(1)}, {}))
    with pytest.raises(CheckpointError, match=r"adapter\.default\.r: was 2, now 4"):
        went_on(tmp_path / "c", ({"model": adapted(0)}, {}), ({"model": adapted(0, 4)}, {}))


def test_a_models_own_settings_count(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.dropout: was 0\.0, now 0\.5"):
        went_on(tmp_path, ({}, {}), ({"model": tiny_blenderbot(dropout=0.5)}, {}))


def test_the_model_may_be_loaded_from_the_checkpoint(tmp_path: Path) -> None:
    first = made(tmp_path)
    first.train()
    again = type(first.model).from_pretrained(tmp_path / "checkpoint-2", dtype=torch.float32)
    made(tmp_path, {"model": again}).train(resume_from_checkpoint=True)


def test_other_rows_are_named(tmp_path: Path) -> None:
    other = [{**ROWS[0], "completion": "sure!"}, *ROWS[1:]]
    with pytest.raises(CheckpointError, match="training rows: was"):
        went_on(tmp_path, ({}, {}), ({"train_dataset": other}, {}))


def sgd(lr: float = 0.1, momentum: float = 0.0, after: Any = None) -> Any:
    def build(model: Any) -> tuple:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
        return optimizer, LambdaLR(optimizer, after) if after else None

    return build


def halved(step: int) -> float:
    return 0.5**step


def steady(step: int, size: float = 1.0) -> float:
    return size


@pytest.mark.parametrize(
    ("then", "now", "name"),
    [
        (sgd(), sgd(momentum=0.9), "optimizer: was"),
        (sgd(), sgd(lr=0.2), "optimizer: was"),
        (sgd(after=steady), sgd(after=halved), "lr_scheduler: was"),
        (
            sgd(after=partial(steady, size=1.0)),
            sgd(after=partial(steady, size=2.0)),
            "lr_scheduler",
        ),
        (lambda model: (None, None), sgd(), "optimizer: was not recorded, now"),
    ],
)
def test_an_optimizer_or_schedule_that_is_handed_in_counts(
    tmp_path: Path, then: Any, now: Any, name: str
) -> None:
    with pytest.raises(CheckpointError, match=name):
        went_on(tmp_path, ({"optimizers": then}, {}), ({"optimizers": now}, {}))


def test_the_same_optimizer_of_the_caller_resumes_exactly(tmp_path: Path) -> None:
    given = {"optimizers": sgd(momentum=0.9, after=halved)}
    whole = made(tmp_path / "a", given)
    whole.train()
    cut = went_on(tmp_path / "b", (given, {}), (given, {}))
    assert largest_difference(whole.model.state_dict(), cut.model.state_dict()) == 0.0


def test_an_optimizer_class_that_is_handed_in_counts(tmp_path: Path) -> None:
    then, now = ({"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": x})} for x in (0.1, 0.2))
    with pytest.raises(CheckpointError, match="optimizer: was"):
        went_on(tmp_path, (then, {}), (now, {}))


class Mine(TrainerCallback):
    """Nobody can tell what it does."""


def test_a_callers_own_callback_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        went_on(tmp_path, ({}, {}), ({"callbacks": [Mine()]}, {}))
    assert "checkpoint-1: callbacks was" in caplog.text
    assert "test_resume.Mine" in caplog.text


def test_another_length_is_reported_as_inexact(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made(tmp_path).train()
    longer = FlatGDTrainer(
        tiny_blenderbot(), config(tmp_path, **{**EACH_STEP, "max_steps": 3}),
        train_dataset=ROWS, processing_class=byte_tokenizer(), method=Clean(),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        longer.train(resume_from_checkpoint=True)
    assert longer.state.global_step == 3
    assert "max_steps was 2, now 3; learning rate and warm-ups follow the new length" in caplog.text


def test_weights_alone_are_nothing_to_go_on_from(tmp_path: Path) -> None:
    made(tmp_path, save_only_model=True).train()
    told = r"checkpoint-2 lacks optimizer, schedule, random states.*save_only_model: false"
    for resume_or_train in (
        lambda subject: subject.train(resume_from_checkpoint=True),
        lambda subject: subject.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2")),
        lambda subject: subject.resume_or_train(),
    ):
        with pytest.raises(CheckpointError, match=told):
            resume_or_train(made(tmp_path))


def test_rows_that_start_over_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        went_on(tmp_path, ({}, {}), ({}, {"ignore_data_skip": True}))
    assert "with ignore_data_skip the rows start over" in caplog.text


def test_another_number_of_processes_is_named(tmp_path: Path) -> None:
    made(tmp_path).train()
    subject = made(tmp_path)
    now = {**subject.fingerprint(), "processes": 2, "batch": 8}
    with pytest.raises(CheckpointError, match="processes: was 1, now 2"):
        compare(tmp_path / "checkpoint-2", now)


def test_flatgd_by_its_two_experts_resumes(tmp_path: Path) -> None:
    """The constructor's other way to name a method."""

    def given() -> dict:
        return {"method": None, **experts()}

    for method in ("finite_difference", "fast"):
        folder = tmp_path / method
        whole = made(folder / "a", given(), flatness_method=method)
        whole.train()
        fields = {"flatness_method": method}
        cut = went_on(folder / "b", (given(), fields), (given(), fields))
        assert largest_difference(whole.model.state_dict(), cut.model.state_dict()) == 0.0
