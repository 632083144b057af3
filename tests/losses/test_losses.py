"""Divergence and likelihood against their twins, gradcheck, and what must always hold."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import js_by_autograd, js_rows

from flatgd.losses import (
    bhattacharyya_distance,
    js_divergence,
    kl_divergence,
    negative_log_likelihood,
)


def log_probs(rows: int, width: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_js_equals_its_definition(dtype: torch.dtype, tolerance: float) -> None:
    p, q = log_probs(40, 50, 0), log_probs(40, 50, 1)
    got = js_divergence(p.to(dtype), q.to(dtype)).double()
    assert (got - js_rows(p, q)).abs().max() <= tolerance


def test_js_by_hand() -> None:
    """p = (1, 0), q = (1/2, 1/2), m = (3/4, 1/4).

    KL(p || m) = log2(4/3); KL(q || m) = 1/2 log2(2/3) + 1/2 log2(2) = 1/2 log2(4/3), so
    JS = 3/4 log2(4/3) = 0.311278...
    """
    p = torch.tensor([[1.0, 0.0]], dtype=torch.float64).log()
    q = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    assert js_divergence(p, q).item() == pytest.approx(0.75 * math.log2(4 / 3), abs=1e-15)


def test_js_first_and_second_derivative() -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    q = log_probs(3, 6, 2)

    def value(x: torch.Tensor) -> torch.Tensor:
        return js_divergence(x.log_softmax(-1), q)

    assert torch.autograd.gradcheck(value, logits)
    assert torch.autograd.gradgradcheck(value, logits)


def test_js_gradient_off_the_simplex_equals_autograd_of_the_definition() -> None:
    """The closed form holds for any log-probabilities, normalised or not."""
    log_p = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    q = log_probs(4, 9, 3)
    ours = torch.autograd.grad((js_divergence(log_p, q) ** 2).sum(), log_p)[0]
    theirs = torch.autograd.grad((js_by_autograd(log_p, q) ** 2).sum(), log_p)[0]
    clamped = (js_by_autograd(log_p, q) > 1) | (js_by_autograd(log_p, q) < 0)
    assert torch.allclose(ours[~clamped], theirs[~clamped], atol=1e-13)
    value = (js_divergence(log_p, q) ** 2).sum()
    again = torch.autograd.grad(value, log_p, create_graph=True)[0]  # by the other formula
    assert torch.allclose(again, ours, atol=1e-13)


@pytest.mark.parametrize("divergence", [js_divergence, kl_divergence, bhattacharyya_distance])
def test_each_token_has_its_own(divergence: Callable[..., torch.Tensor]) -> None:
    p, q = log_probs(4, 7, 6), log_probs(4, 7, 7)
    one_by_one = torch.cat([divergence(p[n : n + 1], q[n : n + 1]) for n in range(4)])
    assert torch.equal(divergence(p, q), one_by_one)
    assert one_by_one.std() > 0.01
    assert divergence(p.bfloat16(), q.bfloat16()).dtype == torch.float32
    assert divergence(p.bfloat16(), q).dtype == torch.float64


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), width=st.integers(1, 30), scale=st.floats(0.0, 80.0))
def test_js_is_a_bounded_symmetric_divergence(seed: int, width: int, scale: float) -> None:
    p = log_probs(5, width, seed, scale).float()
    q = log_probs(5, width, seed + 1, scale).float()
    forward, backward = js_divergence(p, q), js_divergence(q, p)
    assert (forward >= 0).all()
    assert (forward <= 1).all()
    assert torch.allclose(forward, backward, atol=1e-5)
    assert js_divergence(p, p).max() <= 1e-6


def test_js_is_finite_where_logits_are_minus_infinity() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]], requires_grad=True)
    q = torch.tensor([[0.0, 1.0, -math.inf, -math.inf]]).log_softmax(-1)
    value = js_divergence(logits.log_softmax(-1), q)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient).all()
    assert gradient[0, 1] == 0


def test_js_of_disjoint_distributions_is_one_bit() -> None:
    p = torch.tensor([[0.0, -math.inf]])
    q = torch.tensor([[-math.inf, 0.0]])
    assert js_divergence(p, q).item() == 1.0


def test_js_refuses_other_vocabularies() -> None:
    with pytest.raises(ValueError, match="token map"):
        js_divergence(torch.zeros(2, 3), torch.zeros(2, 4))


def test_expert_gets_no_gradient() -> None:
    q = log_probs(2, 5, 4).requires_grad_()
    p = log_probs(2, 5, 5).requires_grad_()
    js_divergence(p, q).sum().backward()
    assert q.grad is None


def test_negative_log_likelihood_reads_the_target() -> None:
    log_p = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
    got = negative_log_likelihood(log_p, torch.tensor([1, 0]))
    assert got.tolist() == pytest.approx([-math.log(0.75), -math.log(0.5)])
