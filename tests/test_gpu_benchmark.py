"""The GPU benchmark runs on a CPU with tiny models, and its ways agree where they should."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from layers import imports

from benchmarks import gpu
from benchmarks.gpu import WAYS, Subject, Way, shapes
from flatgd.losses.fused import Head

MODELS = list(shapes(True))


def gradient(subject: Subject, way: Way) -> torch.Tensor:
    subject.begin(way)
    return torch.cat([part.flatten() for part in subject.gradient()])


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_each_way_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "TIMED", 1)
    assert gpu.main(["--smoke"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in (*WAYS, "naive", "fused"):
        rows = [line for line in lines if line.startswith(f"  {name:<24}")]
        assert len(rows) == len(MODELS)
        for row in rows:
            seconds = float(row[26:].split()[0])
            assert math.isfinite(seconds)
            assert seconds > 0


def test_what_does_not_fit_into_the_time_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--smoke", "--minutes", "0", "--models", "llama"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left out, no time") == len(WAYS) + 3


@pytest.mark.parametrize("model", MODELS)
def test_fused_and_naive_agree(model: str) -> None:
    for in_half, most in ((False, 1e-4), (True, 1e-2)):
        subject = Subject(shapes(True)[model], in_half)
        fused, naive = (gradient(subject, WAYS[name]) for name in (gpu.BASE, gpu.NAIVE))
        assert apart(fused, naive) < most


@pytest.mark.parametrize("model", MODELS)
def test_the_penalty_is_that_of_second_derivatives(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    settings = replace(gpu.PENALTY, weight=1000.0, rho=1e-3)
    monkeypatch.setattr(gpu, "PENALTY", settings)
    subject = Subject(shapes(True)[model], in_half=False)
    without = gradient(subject, WAYS[gpu.BASE])
    exact, finite = (gradient(subject, WAYS[n]) for n in ("exact, naive", "finite_difference"))
    assert (exact - without).norm() > 1e-2 * without.norm()  # there is something to get wrong
    assert apart(finite - without, exact - without) < 0.05


@pytest.mark.parametrize("model", MODELS)
def test_products_are_counted_inside_the_fused_head(
    monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    monkeypatch.setattr(gpu, "TIMED", 1)
    subject = Subject(shapes(True)[model])
    costs = []
    for name in (gpu.BASE, gpu.NAIVE):
        subject.begin(WAYS[name])
        costs.append(gpu.attempt(name, subject.step, math.inf))
    fused, naive = costs
    assert fused
    assert naive
    assert fused.products == naive.products > 0


class FakeJSD:
    """liger-kernel 0.8.5's interface, in nats and a mean over tokens."""

    def __init__(self, jsd_beta: float):
        assert jsd_beta == 0.5

    def __call__(
        self,
        student_input: torch.Tensor,
        student_weight: torch.Tensor,
        teacher_input: torch.Tensor,
        teacher_weight: torch.Tensor,
        shift_labels: torch.Tensor | None,
    ) -> torch.Tensor:
        assert shift_labels is None
        log_p, log_q = (
            (states @ weight.T).log_softmax(-1)
            for states, weight in ((student_input, student_weight), (teacher_input, teacher_weight))
        )
        middle = ((log_p.exp() + log_q.exp()) / 2).log()
        parts = [(one.exp() * (one - middle)).sum(-1) for one in (log_p, log_q)]
        return (sum(parts) / 2).mean()


class FakeCrossEntropy:
    def __call__(
        self, lin_weight: torch.Tensor, _input: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(_input @ lin_weight.T, target)


def test_ligers_losses_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = {
        "LigerFusedLinearJSD": FakeJSD,
        "LigerFusedLinearCrossEntropyLoss": FakeCrossEntropy,
    }
    monkeypatch.setitem(sys.modules, "liger_kernel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", SimpleNamespace(**fake))
    torch.manual_seed(0)
    said = [(torch.randn(6, 4), Head(torch.randn(9, 4))) for _ in range(2)]
    states, head, is_safe = torch.randn(6, 4), Head(torch.randn(9, 4)), torch.arange(6) > 2
    of = gpu.Replies(states, head, torch.arange(6), is_safe, said, 6, 3)
    torch.testing.assert_close(gpu.liger_head(of), gpu.naive_head(of))
    torch.testing.assert_close(gpu.fused_head(of), gpu.naive_head(of))


def test_it_imports_losses_and_flatness_alone() -> None:
    ours = {name for name in imports(Path(gpu.__file__)) if name.startswith(("flatgd", "bench"))}
    parts = {name.split(".")[1] for name in ours - {"flatgd"}}
    assert parts == {"losses", "flatness", "table"}
