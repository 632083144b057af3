"""What a training keeps of its penalty for later steps: a running mean, a distance, the penalty."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from reference import relative_error
from training import DESCENT, largest_difference, trained, trainer
from transformers import TrainerState

from benchmarks.effect import adams_mean
from flatgd import SafetyLoss
from flatgd.errors import UnsupportedError
from flatgd.flatness import FlatGradient, Measured
from flatgd.flatness.penalty import norm
from flatgd.training import penalty_choice
from flatgd.training.penalty_choice import keep_distance, kept, measures_distance
from flatgd.training.penalty_memory import MEAN, PENALTY

AHEAD: dict[str, Any] = {"flatness_method": "lookahead", "rho": None}


def averaged(subject: Any) -> list[list[torch.Tensor]]:
    """Train; the gradients that went into the running mean."""
    seen: list[list[torch.Tensor]] = []
    original = subject._running_mean

    def watched(parameters: list, g: list) -> list:
        seen.append([tensor.clone() for tensor in g])
        return original(parameters, g)

    subject._running_mean = watched
    subject.train()
    return seen


@pytest.mark.parametrize("flatness_method", ["finite_difference", "fast", "exact"])
def test_between_two_computations_the_penalty_is_used_again(
    tmp_path: Path, flatness_method: str
) -> None:
    """An optimizer has no state at the first step, so the second computes it again."""
    fields = {"max_steps": 6, "penalty_every": 3, "flatness_method": flatness_method}
    subject = trainer(tmp_path, **fields)
    subject.train()
    log = [entry for entry in subject.state.log_history if "lm" in entry]
    assert [entry["penalty_share"] for entry in log] == [pytest.approx(0.3, rel=1e-4)] * 6
    reused = [entry["gradient_evaluations"] == 1 for entry in log]
    assert reused == [False, False, True, False, True, True]
    sizes = {p: subject.optimizer.state[p][PENALTY].shape for p in subject.model.parameters()}
    assert all(p.shape == size for p, size in sizes.items())


@pytest.mark.parametrize("fields", [{"penalty_every": 3}, AHEAD])
def test_what_later_steps_use_resumes_with_the_training(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    fields = {**fields, "max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    whole = trained(tmp_path / "a", **fields)
    resumed = trainer(tmp_path / "b", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-3"))
    assert largest_difference(whole, dict(resumed.model.state_dict())) == 0.0


def test_lookahead_takes_one_pass_and_measures_its_distance_now_and_then(tmp_path: Path) -> None:
    """At the first step that has a mean, until the distance has settled; then 16 steps later, at
    the next refresh of the mean."""
    subject = trainer(tmp_path, max_steps=36, penalty_every=3, **AHEAD)
    subject.train()
    log = [entry for entry in subject.state.log_history if "lm" in entry]
    measured = [step for step, entry in enumerate(log) if "penalty_share" in entry]
    settled = next(n for n, step in enumerate(measured) if step + 1 not in measured)
    assert measured[: settled + 1] == list(range(2, 3 + settled))
    assert measured[settled + 1] == -(-(measured[settled] + 16) // 3) * 3
    shares = [log[step]["penalty_share"] for step in measured]
    assert 0.2 <= shares[settled] <= 0.45
    assert [entry["gradient_evaluations"] for entry in log] == [
        2 if step in measured else 1 for step in range(36)
    ]
    assert ["flatness_weight" in entry for entry in log[:3]] == [False, False, True]
    between = log[measured[settled] : measured[settled + 1]]
    assert all(entry["flatness_weight"] > 0 for entry in between)
    assert ["safety_grad_norm" in entry for entry in log] == [s in measured for s in range(36)]


def found(is_settled: bool, distance: float = 0.1) -> Measured:
    return Measured(FlatGradient([]), [], distance, distance, is_settled)


def measurements(settles: Callable[[int], bool], steps: int, every: int) -> list[int]:
    """The steps up to `steps` at which the distance is measured."""
    state, seen = TrainerState(), []
    for state.global_step in range(steps):
        if measures_distance(state):
            seen.append(state.global_step)
            keep_distance(state, found(settles(state.global_step)), every)
    return seen


def test_when_the_distance_is_measured() -> None:
    always, never = (lambda step: True), (lambda step: False)
    assert measurements(always, 250, 8) == [0, 16, 48, 112, 176, 240]
    assert measurements(always, 60, 1) == [0, 16, 48]
    assert measurements(always, 60, 10) == [0, 20]
    assert measurements(lambda step: step > 1, 60, 8) == [0, 1, 2, 24, 56]
    assert measurements(never, 57, 8) == [0, 1, 2, 3, 24, 25, 26, 27]
    assert measurements(lambda step: step not in (16, 17), 60, 8) == [0, 16, 17, 18, 56]


def test_the_last_try_does_not_lengthen_the_distance() -> None:
    state = TrainerState()
    for distance in (0.1, 0.2, 0.3, 0.4):
        keep_distance(state, found(False, distance), 1)
    assert (kept(state)["distance"], kept(state)["flatness_weight"]) == (0.3, 0.3)
    for distance in (0.2, 0.15, 0.12, 0.1):
        keep_distance(state, found(False, distance), 1)
    assert kept(state)["distance"] == 0.1
    keep_distance(state, found(True, 0.5), 1)
    assert (kept(state)["distance"], kept(state)["flatness_weight"]) == (0.5, 0.5)


def after(subject: Any, steps: int) -> Any:
    """Run so many steps by hand; the next batch."""
    subject.create_optimizer_and_scheduler(steps)
    subject.state.max_steps = steps
    batches = [subject.data_collator(subject.examples[n * 8 : n * 8 + 8]) for n in (0, 1, 0, 1)]
    for batch in batches[:steps]:
        subject.training_step(subject.model, dict(batch))
        subject.optimizer.step()
        subject.state.global_step += 1
    return batches[steps]


def plain_gradient_of(subject: Any, batch: Any) -> list[torch.Tensor]:
    """grad (L_S + a L_LM) of the model as it is, by another Trainer."""
    other = trainer(Path(subject.args.output_dir) / "plain", model=subject.model, kind=SafetyLoss)
    other.create_optimizer_and_scheduler(1)
    other.training_step(other.model, dict(batch))
    return [p.grad.clone() for p in other.model.parameters()]


def test_lookahead_is_the_plain_gradient_at_the_point_ahead(tmp_path: Path) -> None:
    subject = trainer(tmp_path, **AHEAD)
    batch = after(subject, 3)
    kept(subject.state).update(measure_at=99, flatness_weight=0.1, distance=9.0)
    parameters = list(subject.model.parameters())
    mean = [subject.optimizer.state[p][MEAN].clone() for p in parameters]
    subject.training_step(subject.model, dict(batch))
    weight = subject.step_state.figures["flatness_weight"][-1]
    got = [p.grad.clone() for p in parameters]
    here = plain_gradient_of(subject, batch)
    with torch.no_grad():
        for parameter, along in zip(parameters, mean, strict=True):
            parameter.add_(along, alpha=2 * weight)
    wanted = plain_gradient_of(subject, batch)
    assert relative_error(got, wanted) < 1e-5
    assert relative_error(here, wanted) > 0.05  # there is something to get wrong


def test_a_step_between_adds_lambda_times_the_last_penalty(tmp_path: Path) -> None:
    subject = trainer(tmp_path, penalty_every=4)
    batch = after(subject, 2)
    parameters = list(subject.model.parameters())
    penalty = [subject.optimizer.state[p][PENALTY].clone() for p in parameters]
    subject.training_step(subject.model, dict(batch))
    got = [p.grad.clone() for p in parameters]
    plain = plain_gradient_of(subject, batch)
    weight = subject.step_state.figures["flatness_weight"][-1]
    pairs = zip(plain, penalty, strict=True)
    assert relative_error(got, [a + weight * b for a, b in pairs]) < 1e-5
    assert relative_error(got, plain) > 0.1


def test_the_mean_that_lookahead_follows(tmp_path: Path) -> None:
    """By hand: begun with the second step's gradient, refreshed at every second step."""
    subject = trainer(tmp_path, max_steps=7, penalty_every=2, **AHEAD)
    with patch.object(penalty_choice, "AHEAD_TRIES", 1):
        seen = averaged(subject)
    assert len(seen) == 5  # steps 0 and 1, and then 2, 4 and 6
    means = [subject.optimizer.state[p][MEAN] for p in subject.model.parameters()]
    for mean, a, b, c, d in zip(means, *seen[1:], strict=True):
        torch.testing.assert_close(mean, a / 8 + b / 8 + c / 4 + d / 2)


def test_adams_first_moment_can_take_the_means_place(tmp_path: Path) -> None:
    """As in benchmarks/effect.py, also where warm-up steps have not refreshed any mean."""
    fields = {"max_steps": 8, "penalty_warmup": 0.5, "penalty_every": 3, **AHEAD}
    with adams_mean():
        subject = trainer(tmp_path / "a", **fields)
        subject.train()
        mean = subject._mean(list(subject.model.parameters()))
    log = [entry for entry in subject.state.log_history if "penalty_share" in entry]
    assert log
    assert mean is not None
    first = next(subject.model.parameters())
    assert mean.gradient[0] is subject.optimizer.state[first]["exp_avg"]
    assert mean.size == norm(mean.gradient)


def test_another_training_begins_without_what_the_last_one_kept(tmp_path: Path) -> None:
    subject = trainer(tmp_path, max_steps=3, penalty_every=4)
    subject.train()
    subject.train()
    log = [entry for entry in subject.state.log_history if "gradient_evaluations" in entry]
    assert [entry["gradient_evaluations"] == 1 for entry in log] == [False, False, True]


@pytest.mark.parametrize("fields", [{"penalty_every": 3}, AHEAD])
def test_an_optimizer_of_some_weights_is_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    subject = trainer(tmp_path, **fields)
    subject.optimizer = torch.optim.AdamW(subject.model.model.decoder.parameters())
    with pytest.raises(UnsupportedError, match="the optimizer has no part in"):
        subject.train()


def test_micro_batches_do_not_change_what_lookahead_does(tmp_path: Path) -> None:
    fields = {"max_steps": 6, "penalty_every": 2, **AHEAD, **DESCENT}
    whole = trained(tmp_path / "a", **fields)
    cut = trained(tmp_path / "b", micro_batch_size=3, **fields)
    assert largest_difference(whole, cut) <= 1e-5


@pytest.mark.parametrize("fields", [{"kind": SafetyLoss}, {"penalty_share": 0.0}])
def test_too_many_layers_are_refused_where_there_is_a_penalty(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match="penalty_layers: 9, but the model's decoder has 1"):
        trainer(tmp_path, penalty_layers=9)
    trainer(tmp_path, penalty_layers=9, max_steps=1, **fields).train()


@pytest.mark.parametrize(("layers", "inside"), [("blocks", "layer"), (1, "decoder.layers.0.")])
def test_a_penalty_on_some_layers_moves_them_alone(
    tmp_path: Path, layers: str | int, inside: str
) -> None:
    """One step of plain descent with and without the penalty."""
    fields = {"max_steps": 1, "max_grad_norm": 0.0, **DESCENT}
    without = trained(tmp_path / "a", penalty_share=0.0, **fields)
    with_it = trained(tmp_path / "b", penalty_layers=layers, **fields)
    moved = [n for n in without if (without[n] - with_it[n]).abs().max() > 1e-5]
    assert moved
    assert all(inside in name for name in moved)


def test_running_mean_of_the_gradient(tmp_path: Path) -> None:
    """By hand from each step's own gradient; begun where the optimizer has a state."""
    subject = trainer(tmp_path, max_steps=4, penalty_momentum=0.75, penalty_fraction=0.5)
    seen = averaged(subject)
    means = [subject.optimizer.state[p][MEAN] for p in subject.model.parameters()]
    first, second, third = seen[1:]
    for mean, a, b, c in zip(means, first, second, third, strict=True):
        wanted = 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c
        torch.testing.assert_close(mean, wanted)
    assert "exp_avg" in next(iter(subject.optimizer.state.values()))


def test_the_running_mean_resumes_with_the_training(tmp_path: Path) -> None:
    fields = {"max_steps": 4, "penalty_momentum": 0.9, "save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "a", **fields)
    resumed = trainer(tmp_path / "b", **fields)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a/checkpoint-2"))
    assert largest_difference(whole, dict(resumed.model.state_dict())) == 0.0
    without = trained(tmp_path / "c", **{**fields, "penalty_momentum": 0.0})
    assert largest_difference(whole, without) > 1e-4
