"""Evaluation: the training's own loss over other rows, however they are cut into batches."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama
from reference import js_by_autograd
from torch.nn.functional import cross_entropy
from training import DESCENT, ROWS, config, largest_difference, own_trainer
from transformers import EarlyStoppingCallback, Trainer

from flatgd import Clean, FlatGD, FlatGDTrainer, SafetyLoss
from flatgd.errors import CheckpointError, DataError, UnsupportedError
from flatgd.io.records import Dialogue, read_jsonl
from flatgd.methods import GNP, NPO, Click, Cringe, Director, Unlikelihood
from flatgd.methods.base import Totals
from flatgd.models.adapters import with_adapter
from flatgd.models.encoding import IGNORE
from flatgd.training.loop import train
from flatgd.training.micro_batches import split_batch
from flatgd.training.totals import counts_of

OTHERS = mild_rows(13, seed=6)  # of no batch size a multiple
BEST = {
    "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
    "load_best_model_at_end": True, "max_steps": 6,
}  # fmt: skip


def made(folder: Path, method: Any = None, model: Any = None, **more: Any) -> FlatGDTrainer:
    given = {"train_dataset": ROWS, "eval_dataset": OTHERS}
    given |= {key: more.pop(key) for key in ("train_dataset", "eval_dataset") if key in more}
    callbacks = more.pop("callbacks", None)
    metrics = more.pop("compute_metrics", None)
    return FlatGDTrainer(
        model or tiny_blenderbot(), config(folder, **more), processing_class=byte_tokenizer(),
        method=method or Clean(), callbacks=callbacks, compute_metrics=metrics, **given,
    )  # fmt: skip


def pair(*, double: bool = False) -> dict[str, Any]:
    models = {"clean_expert": tiny_blenderbot(11), "toxic_expert": tiny_blenderbot(12)}
    return {name: model.double() if double else model for name, model in models.items()}


def dialogue(turn: str, reply: str, is_safe: bool) -> Dialogue:
    return Dialogue((turn,), reply, is_safe, "c", "bot", "x")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("batch", "micro"), [(1, None), (3, 2), (64, None)])
def test_it_is_the_loss_of_the_whole_set_at_once(
    tmp_path: Path, batch: int, micro: int | None, fused: bool
) -> None:
    """Against the paper's formula in float64, over all rows in one batch; dropout is off."""
    experts = pair(double=True)
    subject = made(
        tmp_path, FlatGD(**experts), tiny_blenderbot(dropout=0.5).double(), fused_head=fused,
        per_device_eval_batch_size=batch, micro_batch_size=micro,
    )  # fmt: skip
    found = subject.evaluate()

    batch_ = subject.data_collator(subject.eval_dataset)
    real, safe = batch_["targets"] != IGNORE, batch_["is_safe"]
    feed = {k: v for k, v in batch_.items() if k not in ("targets", "is_safe", "row")}
    with torch.no_grad():
        logits = subject.model.eval()(**feed).logits
        log_p = logits[real].log_softmax(-1)
        clean, toxic = (
            js_by_autograd(log_p, expert(**feed).logits[real].log_softmax(-1)).mean()
            for expert in experts.values()
        )
        lm = cross_entropy(logits[safe][real[safe]], batch_["targets"][safe][real[safe]])
    wanted = {"lm": lm, "js_clean": clean, "js_toxic": toxic, "loss": lm + 3 * clean - 2 * toxic}
    for name, value in wanted.items():
        assert found[f"eval_{name}"] == pytest.approx(float(value), rel=1e-6)


METHODS = {
    "clean": Clean,
    "unlikelihood": Unlikelihood,
    "cringe": Cringe,
    "director": Director,
    "npo": lambda: NPO(backbone=tiny_blenderbot(3)),
    "safety_loss": lambda: SafetyLoss(**pair()),
    "kl": lambda: SafetyLoss(**pair(), divergence="kl"),
    "gnp": lambda: GNP(**pair()),
}


@pytest.mark.parametrize("name", METHODS)
def test_no_methods_figures_hang_on_the_batch_size(tmp_path: Path, name: str) -> None:
    figures = []
    for size in (2, 5, 64):
        subject = made(tmp_path / str(size), METHODS[name](), per_device_eval_batch_size=size)
        subject.train()
        metrics = subject.evaluate()
        figures.append({k: v for k, v in metrics.items() if "second" not in k and "time" not in k})
    for other in figures[1:]:
        assert other == pytest.approx(figures[0], rel=1e-5)
    assert len(figures[0]) >= 3


def test_pairs_are_evaluated_as_pairs(tmp_path: Path) -> None:
    pairs = [
        (dialogue(f"hi {n}", "thanks!", True), dialogue(f"hi {n}", "go away, goose.", False))
        for n in range(5)
    ]
    rows = [*(dialogue(f"tea {n}", "i like tea.", True) for n in range(5)), *pairs]
    figures = []
    for size in (1, 4, 64):
        subject = made(
            tmp_path / str(size), Click(margin=100.0), train_dataset=rows, eval_dataset=rows[::-1],
            per_device_eval_batch_size=size,
        )  # fmt: skip
        figures.append(subject.evaluate())
    whole = subject.data_collator(subject.eval_dataset)
    totals = Totals(*counts_of(whole).tolist())
    assert totals.pairs == 5
    with torch.no_grad():  # split_batch sorts pairs, toxic before safe
        parts = [
            subject.method.terms(subject.model.eval(), p, totals) for p in split_batch(whole, 99)
        ]
    wanted = {name: sum(part.figures[name] for part in parts) for name in parts[0].figures}
    assert wanted["click"] > 1
    for found in figures:
        for name, value in wanted.items():
            assert found[f"eval_{name}"] == pytest.approx(float(value), rel=1e-5)
    with pytest.raises(UnsupportedError, match="clean learns from replies, but eval_dataset"):
        made(tmp_path, eval_dataset=pairs)


@pytest.mark.parametrize("method", [Clean, Director])
def test_evaluating_changes_nothing_of_the_training(tmp_path: Path, method: Any) -> None:
    """Also with dropout: random states and figures of the steps are kept apart."""
    weights, logs = [], []
    for name, fields in (("a", {}), ("b", {"eval_strategy": "steps", "eval_steps": 1})):
        subject = made(
            tmp_path / name, method(), tiny_blenderbot(dropout=0.3), logging_steps=2, max_steps=4,
            **fields,
        )  # fmt: skip
        subject.train()
        weights.append(dict(subject.model.state_dict()))
        logs.append([e for e in subject.state.log_history if "loss" in e])
    assert largest_difference(*weights) == 0.0
    timed = {"seconds"}
    for one, other in zip(*logs, strict=True):
        assert {k: v for k, v in one.items() if k not in timed} == {
            k: v for k, v in other.items() if k not in timed
        }


def test_rows_given_later_and_several_sets(tmp_path: Path) -> None:
    sets = {"ours": OTHERS, "theirs": OTHERS[:4]}
    subject = made(tmp_path, eval_dataset=sets)
    found = subject.evaluate()
    assert found["eval_theirs_loss"] != found["eval_ours_loss"]
    alone = made(tmp_path, eval_dataset=None)
    assert alone.evaluate(OTHERS[:4])["eval_loss"] == found["eval_theirs_loss"]
    assert alone.evaluate(sets)["eval_ours_loss"] == found["eval_ours_loss"]
    with pytest.raises(DataError, match=r"eval_dataset:2: .*"):
        alone.evaluate([OTHERS[0], {"prompt": 3}])
    with pytest.raises(ValueError, match="requires an eval_dataset"):
        alone.evaluate()


def test_the_last_batch_is_never_dropped(tmp_path: Path) -> None:
    fields = {"per_device_eval_batch_size": 8}
    whole = made(tmp_path, **fields).evaluate()
    dropping = made(tmp_path, **fields, dataloader_drop_last=True)
    assert dropping.evaluate()["eval_loss"] == whole["eval_loss"]
    assert dropping.args.dataloader_drop_last


def test_metrics_and_predictions(tmp_path: Path) -> None:
    def right(predicted: Any) -> dict[str, float]:
        real = predicted.label_ids != IGNORE
        return {
            "right": float((predicted.predictions.argmax(-1) == predicted.label_ids)[real].mean())
        }

    subject = made(tmp_path, compute_metrics=right, per_device_eval_batch_size=5)
    found = subject.evaluate()
    assert 0 <= found["eval_right"] <= 1
    assert found["eval_loss"] == pytest.approx(made(tmp_path).evaluate()["eval_loss"], rel=1e-6)
    said = subject.predict(OTHERS)
    assert said.predictions.shape[0] == len(OTHERS)
    assert np.isfinite(said.predictions[said.label_ids != IGNORE]).all()
    assert said.metrics["test_loss"] == pytest.approx(found["eval_loss"], rel=1e-6)


def test_cached_experts_say_the_same_of_evaluation_rows(tmp_path: Path) -> None:
    live = made(tmp_path / "a", SafetyLoss(**pair()))
    cached = made(tmp_path / "b", SafetyLoss(**pair()), expert_cache=str(tmp_path / "states"))
    wanted, found = live.evaluate(), cached.evaluate()
    for name in ("eval_loss", "eval_js_clean", "eval_js_toxic"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5)
    cached.train()
    for later in (cached.evaluate, cached.predict):
        with pytest.raises(UnsupportedError, match="keeps no expert for rows that"):
            later(OTHERS[:2])


def worsening(metrics: list[float]) -> Any:
    """Losses as they come, whatever the model."""
    given = iter(metrics)
    return lambda predicted: {"made_up": next(given)}


def test_the_best_model_is_what_comes_out(tmp_path: Path) -> None:
    """Of steps 1 to 6 the second is best; its checkpoint outlives the others."""
    subject = made(
        tmp_path / "a", compute_metrics=worsening([5, 1, 2, 3, 4, 5]), **BEST,
        metric_for_best_model="made_up", greater_is_better=False, save_total_limit=2, **DESCENT,
    )  # fmt: skip
    subject.train()
    kept = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert kept == ["checkpoint-2", "checkpoint-5", "checkpoint-6"]
    assert subject.state.best_model_checkpoint == str(tmp_path / "a/checkpoint-2")
    other = made(tmp_path / "b", **{**BEST, "load_best_model_at_end": False}, **DESCENT)
    other.train()
    saved = type(other.model).from_pretrained(tmp_path / "b/checkpoint-5", dtype=torch.float32)
    second = type(other.model).from_pretrained(tmp_path / "a/checkpoint-2", dtype=torch.float32)
    assert largest_difference(second.state_dict(), subject.model.state_dict()) == 0.0
    assert largest_difference(saved.state_dict(), subject.model.state_dict()) > 0.0


def test_by_default_the_lowest_loss_is_best_and_adapters_are_loaded_too(tmp_path: Path) -> None:
    settings = config(tmp_path, lora_rank=2)
    model = with_adapter(tiny_llama(), settings)
    subject = made(tmp_path, model=model, learning_rate=0.5, **BEST)
    subject.train()
    losses = [e["eval_loss"] for e in subject.state.log_history if "eval_loss" in e]
    assert subject.state.best_global_step == losses.index(min(losses)) + 1
    assert subject.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def early(folder: Path, metrics: list[float], **more: Any) -> FlatGDTrainer:
    return made(
        folder, compute_metrics=worsening(metrics), **{**BEST, "save_total_limit": 9},
        metric_for_best_model="made_up", greater_is_better=False, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "how", [{"early_stopping_patience": 2}, {"callbacks": [EarlyStoppingCallback(2)]}]
)
def test_early_stopping(tmp_path: Path, how: dict) -> None:
    subject = early(tmp_path, [5, 1, 2, 3, 4, 5], **how)
    subject.train()
    assert subject.state.global_step == 4
    assert subject.state.best_global_step == 2


def test_early_stopping_resumes_its_count(tmp_path: Path) -> None:
    """Cut off after step 3 (one evaluation without gain), moved, and gone on with."""
    early(tmp_path / "a", [5, 1, 2, 3, 4, 5], early_stopping_patience=2).train()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b/checkpoint-4").rename(tmp_path / "later")
    resumed = early(tmp_path / "b", [3, 4, 5], early_stopping_patience=2)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert resumed.state.best_model_checkpoint == str(tmp_path / "b/checkpoint-2")
    with pytest.raises(CheckpointError, match="early_stopping_patience: was 2, now 3"):
        early(tmp_path / "b", [3], early_stopping_patience=3).train(resume_from_checkpoint=True)


def test_other_evaluation_rows_count_where_they_choose_the_weights(tmp_path: Path) -> None:
    made(tmp_path / "a", **BEST).train()
    with pytest.raises(CheckpointError, match="evaluation rows: was"):
        made(tmp_path / "a", eval_dataset=OTHERS[:5], **BEST).train(resume_from_checkpoint=True)
    plain = {**BEST, "load_best_model_at_end": False}
    made(tmp_path / "b", **plain).train()
    made(tmp_path / "b", eval_dataset=OTHERS[:5], **plain).train(resume_from_checkpoint=True)


def test_a_corrupted_best_checkpoint_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = early(tmp_path, [1, 2, 3, 4, 5, 6])
    subject.train()
    assert "missing keys" not in caplog.text  # tied weights are not missing
    (tmp_path / "checkpoint-1/model.safetensors").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-1, the best checkpoint: model\.safetens"
    ):
        subject._load_best_model()
    shutil.rmtree(tmp_path / "checkpoint-1")
    with pytest.raises(
        CheckpointError, match="checkpoint-1, the best checkpoint so far, is missing"
    ):
        early(tmp_path, []).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": None},
            "there are no rows to evaluate",
        ),
        ({"early_stopping_patience": 1}, "early stopping needs eval_strategy"),
        ({"callbacks": [EarlyStoppingCallback()]}, "early stopping needs eval_strategy"),
        ({"eval_dataset": {"a": OTHERS}, **BEST}, r"'loss' belongs to none .* example eval_a_loss"),
        ({"bf16_full_eval": True}, "round the trained weights"),
        ({"early_stopping_patience": 0}, "early_stopping_patience must be a whole number >= 1"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_at_once(tmp_path: Path, more: dict, told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        made(tmp_path, **more)


def test_a_missing_metric_is_reported(tmp_path: Path) -> None:
    subject = made(tmp_path, **{**BEST, "metric_for_best_model": "los"})
    with pytest.raises(
        UnsupportedError, match=r"'los' is not among the evaluated metrics: .*eval_loss"
    ):
        subject.train()


def test_a_loss_that_is_not_finite_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = made(tmp_path)
    next(iter(subject.model.parameters())).data.fill_(torch.nan)
    with caplog.at_level(logging.WARNING):
        assert np.isnan(subject.evaluate()["eval_loss"])
    assert "evaluation after step 0: eval_loss, eval_lm is not finite" in caplog.text


def test_another_trainer_evaluates_as_it_does(tmp_path: Path) -> None:
    plain, flat = (
        own_trainer(tmp_path / kind.__name__, tiny_llama, kind, flatness_weight=0.0)
        for kind in (Trainer, type(own_trainer(tmp_path, tiny_llama)))
    )
    rows = plain.train_dataset[:5]
    assert flat.evaluate(rows)["eval_loss"] == plain.evaluate(rows)["eval_loss"]


def test_a_training_to_a_folder_keeps_its_evaluations(tmp_path: Path) -> None:
    told, _ = train(
        tiny_blenderbot(), byte_tokenizer(), ROWS, config(tmp_path, **BEST), Clean(),
        eval_rows=OTHERS,
    )  # fmt: skip
    entries = list(read_jsonl(tmp_path / "evaluation.jsonl"))
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert "evaluated on 13 replies" in told
    assert "the weights of step" in told
    assert not list(tmp_path.glob("checkpoint-*"))
