"""The trainer: what a step is, and that it is the same however cut."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from reference import js_by_autograd, penalised_gradient, relative_error
from torch.nn.functional import cross_entropy
from training import DESCENT, ROWS, config, experts, largest_difference, trained, trainer
from transformers import Trainer

from flatgd import Clean, FlatGD, FlatGDTrainer, SafetyLoss
from flatgd.errors import NonFiniteError
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import IGNORE
from flatgd.training.masks import mixed_seed


class PlainSafetyLoss(Trainer):
    """The objective with lambda = 0, written again from the paper on a plain Trainer."""

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> torch.Tensor:
        targets, is_safe = inputs["targets"], inputs["is_safe"]
        real = targets != IGNORE
        feed = {k: v for k, v in inputs.items() if k not in ("targets", "is_safe")}
        with torch.no_grad():
            clean = self.clean_expert(**feed).logits[real].log_softmax(-1)
            toxic = self.toxic_expert(**feed).logits[real].log_softmax(-1)
        logits = model(**feed).logits
        log_p = logits[real].log_softmax(-1)
        safety = 3 * js_by_autograd(log_p, clean).mean() - 2 * js_by_autograd(log_p, toxic).mean()
        return safety + cross_entropy(
            logits[is_safe][real[is_safe]], targets[is_safe][real[is_safe]]
        )


def test_lambda_zero_is_safety_loss_bit_for_bit(tmp_path: Path) -> None:
    flat = trained(tmp_path / "a", kind=FlatGD, flatness_weight=0)
    safety = trained(tmp_path / "b", kind=SafetyLoss)
    assert all(torch.equal(flat[name], safety[name]) for name in flat)


def test_lambda_zero_is_an_independent_safety_loss(tmp_path: Path) -> None:
    """Two accounts of one objective on two Trainers end at the same weights."""
    tokenizer, model = byte_tokenizer(), tiny_blenderbot()
    family = format_for(model.config, tokenizer, max_reply_tokens=32)
    ours = trainer(tmp_path / "a", flatness_weight=0, max_steps=5, **DESCENT)
    plain = PlainSafetyLoss(
        model=model,
        args=config(tmp_path / "b", max_steps=5, **DESCENT),
        train_dataset=[example for (example,) in ours.examples],
        data_collator=family.collate,
    )
    for name, expert in experts().items():
        setattr(plain, name, expert.eval())
    ours.train()
    plain.train()
    assert largest_difference(ours.model.state_dict(), model.state_dict()) <= 1e-5


def test_expert_weights_zero_is_cross_entropy(tmp_path: Path) -> None:
    """Without divergences, on safe rows alone, FlatGD is clean fine-tuning."""
    safe = [row for row in ROWS if row["label"]]
    results = []
    for name, method in (
        ("a", FlatGD(**experts(), attract_weight=0.0, repel_weight=0.0)),
        ("b", Clean()),
    ):
        subject = FlatGDTrainer(
            tiny_blenderbot(),
            config(tmp_path / name, flatness_weight=0, **DESCENT),
            train_dataset=safe,
            processing_class=byte_tokenizer(),
            method=method,
        )
        subject.train()
        results.append(subject.model.state_dict())
    assert largest_difference(*results) <= 1e-6


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"flatness_method": "exact"},
        {"flatness_method": "fast"},
        {"flatness_weight": 0},
        {"penalty_fraction": 0.4},
        {"flatness_method": "fast", "penalty_fraction": 0.4},
    ],
)
def test_one_by_eight_equals_eight_by_one(tmp_path: Path, fields: dict) -> None:
    whole = trained(tmp_path / "a", max_steps=5, **DESCENT, **fields)
    for size in (1, 3):
        parts = trained(
            tmp_path / f"{size}", max_steps=5, micro_batch_size=size, **DESCENT, **fields
        )
        assert largest_difference(whole, parts) <= 1e-5


@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({"flatness_method": "exact"}, 1e-4),
        ({"difference": "central"}, 1e-3),
        ({"difference": "forward"}, 2e-2),
    ],
)
@pytest.mark.parametrize("penalise", ["safety_loss", "objective"])
def test_gradient_of_a_step_on_the_real_model(
    tmp_path: Path, fields: dict, tolerance: float, penalise: str
) -> None:
    """What the trainer leaves in .grad against one float64 graph of the whole objective."""
    subject = trainer(tmp_path, flatness_weight=0.05, penalise=penalise, **fields)
    batch = subject.data_collator(subject.examples[:8])
    subject.training_step(subject.model, batch)
    got = [p.grad for p in subject.model.parameters()]

    model = copy.deepcopy(subject.model).double()
    pair = {name: expert.double().eval() for name, expert in experts().items()}
    for part in (model, *pair.values()):
        part.set_attn_implementation("eager")
    real, safe = batch["targets"] != IGNORE, batch["is_safe"]
    feed = {k: v for k, v in batch.items() if k not in ("targets", "is_safe")}
    clean, toxic = (
        expert(**feed).logits[real].log_softmax(-1).detach() for expert in pair.values()
    )

    def safety() -> torch.Tensor:
        log_p = model(**feed).logits[real].log_softmax(-1)
        return 3 * js_by_autograd(log_p, clean).mean() - 2 * js_by_autograd(log_p, toxic).mean()

    def likelihood() -> torch.Tensor:
        logits = model(**feed).logits[safe]
        return cross_entropy(logits[real[safe]], batch["targets"][safe][real[safe]])

    def nothing() -> torch.Tensor:
        return torch.zeros((), dtype=torch.float64)

    if penalise == "objective":
        parts = (lambda: safety() + likelihood()), nothing
    else:
        parts = safety, likelihood
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert relative_error(got, penalised_gradient(parameters, *parts, 0.05)) <= tolerance


def test_both_passes_see_the_same_dropout_masks(tmp_path: Path) -> None:
    """With other masks the difference would be mask noise over rho: a penalty hundreds of times
    as large. The same step without dropout sets the scale."""
    weights = []
    for dropout in (0.0, 0.2):
        subject = trainer(tmp_path, model=tiny_blenderbot(dropout=dropout), penalty_share=1.0)
        batch = subject.data_collator(subject.examples[:8])
        subject.training_step(subject.model, batch)
        weights.append(subject.step_state.figures["flatness_weight"][0])
    assert 0.1 < weights[1] / weights[0] < 10


def test_masks_differ_between_steps_and_micro_batches() -> None:
    seeds = {mixed_seed(1, step, 0, index) for step in range(20) for index in range(20)}
    assert len(seeds) == 400


def test_the_random_state_outside_is_left_alone(tmp_path: Path) -> None:
    subject = trainer(tmp_path, model=tiny_blenderbot(dropout=0.2))
    batch = subject.data_collator(subject.examples[:8])
    before = torch.get_rng_state()
    subject.training_step(subject.model, batch)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast"])
def test_fused_or_not_is_one_trajectory(tmp_path: Path, flatness_method: str) -> None:
    fields = {"max_steps": 5, "flatness_method": flatness_method, "micro_batch_size": 3}
    fused = trained(tmp_path / "a", **fields, **DESCENT)
    plain = trained(tmp_path / "b", fused_head=False, **fields, **DESCENT)
    assert 0 < largest_difference(fused, plain) <= 1e-5


def test_fast_stays_near_and_measures_lambda_at_each_tenth_step(tmp_path: Path) -> None:
    slow = trained(tmp_path / "a", max_steps=12, **DESCENT)
    subject = trainer(tmp_path / "b", max_steps=12, flatness_method="fast", **DESCENT)
    start = {name: value.clone() for name, value in subject.model.state_dict().items()}
    subject.train()
    gone = largest_difference(start, slow)
    assert largest_difference(dict(subject.model.state_dict()), slow) < 0.2 * gone
    log = [entry for entry in subject.state.log_history if "lm" in entry]
    assert [step for step, entry in enumerate(log) if "penalty_share" in entry] == [0, 10]
    check = 3  # passes that estimate the difference's error
    assert [entry["gradient_evaluations"] for entry in log] == [2 + check, *[2] * 11]


def test_penalty_of_a_fraction_of_the_rows(tmp_path: Path) -> None:
    """Of 8 rows the first 3; their mean's norm is another than the batch's."""
    logs = []
    for fraction in (1.0, 0.3):
        subject = trainer(tmp_path, max_steps=2, penalty_fraction=fraction, learning_rate=0.0)
        subject.train()
        logs.append(subject.state.log_history[1])  # the first step also checks the difference
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-5)
    assert logs[0]["safety_grad_norm"] < logs[1]["safety_grad_norm"]
    assert 1.2 < logs[1]["gradient_evaluations"] < 1.6


def test_warm_up_is_safety_loss_and_then_the_penalty_comes(tmp_path: Path) -> None:
    subject = trainer(tmp_path, max_steps=4, penalty_warmup=0.5)
    subject.train()
    logged = [entry for entry in subject.state.log_history if "lm" in entry]
    assert ["penalty_share" in entry for entry in logged] == [False, False, True, True]
    assert logged[-1]["penalty_share"] == pytest.approx(0.3, rel=1e-4)


def test_each_step_is_logged(tmp_path: Path) -> None:
    subject = trainer(tmp_path, max_steps=2)
    subject.train()
    entry = subject.state.log_history[0]
    wanted = "lm js_clean js_toxic safety_grad_norm penalty_share flatness_weight tokens seconds"
    assert set(wanted.split()) <= set(entry)
    assert entry["loss"] == pytest.approx(
        entry["lm"] + 3 * entry["js_clean"] - 2 * entry["js_toxic"], rel=1e-5
    )
    assert 8 * 2 <= entry["tokens"] <= 8 * 32


def test_experts_and_their_mode_are_left_alone(tmp_path: Path) -> None:
    subject = trainer(tmp_path, model=tiny_blenderbot(dropout=0.2))
    pair = [subject.method.clean_expert, subject.method.toxic_expert]
    before = [copy.deepcopy(expert.state_dict()) for expert in pair]
    subject.train()
    for expert, state in zip(pair, before, strict=True):
        assert not expert.training
        assert all(torch.equal(state[n], v) for n, v in expert.state_dict().items())


def test_causal_models_train_too(tmp_path: Path) -> None:
    subject = FlatGDTrainer(
        tiny_llama(),
        config(tmp_path, flatness_method="exact"),
        train_dataset=ROWS,
        processing_class=byte_tokenizer(),
        clean_expert=tiny_llama(1),
        toxic_expert=tiny_llama(2),
    )
    subject.train()
    assert subject.state.log_history[0]["penalty_share"] == pytest.approx(0.3, rel=1e-4)


def test_nan_stops_the_step_before_anything_is_updated(tmp_path: Path) -> None:
    subject = trainer(tmp_path)
    subject.method.toxic_expert.model.shared.weight.data[5] = math.nan
    before = copy.deepcopy(subject.model.state_dict())
    with pytest.raises(NonFiniteError, match=r"step 1: .*js_toxic.* is NaN or infinite"):
        subject.train()
    after = subject.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resume_is_bit_for_bit(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a", max_steps=4, save_strategy="steps", save_steps=2)
    resumed = trainer(tmp_path / "b", max_steps=4, save_strategy="steps", save_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    assert all(torch.equal(whole[n], v) for n, v in resumed.model.state_dict().items())


def test_resume_of_fast_knows_the_measured_lambda(tmp_path: Path) -> None:
    fields = {"max_steps": 4, "flatness_method": "fast", "save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "a", **fields)
    resumed = trainer(tmp_path / "b", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert largest_difference(whole, dict(resumed.model.state_dict())) == 0.0
