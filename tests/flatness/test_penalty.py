"""The ways to the penalty's gradient where something is zero, unused, reduced or counted."""

import math
from collections.abc import Callable

import pytest
import torch
from test_flatness import UNEVEN, WHOLE, Problem, alone
from torch import Tensor

from flatgd.flatness import (
    FlatGradient,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    exact,
    fast_difference,
    finite_difference,
    is_finite,
    plain_gradient,
)
from flatgd.flatness.penalty import norm

METHODS = [exact, finite_difference, fast_difference]


def step(
    method: Callable, problem: Problem, settings: PenaltySettings, reduce: Callable = alone
) -> FlatGradient:
    given = problem.parameters, problem.objective, Split(UNEVEN), reduce, settings
    return method(*given, settings.weight) if method is fast_difference else method(*given)


def doubled(gradient: list[Tensor]) -> None:
    torch._foreach_mul_(gradient, 2.0)


@pytest.mark.parametrize("share", [None, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_with_the_same_rows_are_one_with_a_doubled_loss(
    method: Callable, share: float | None
) -> None:
    settings = PenaltySettings(None if share else 0.7, share, rho=1e-4)
    got = step(method, Problem(), settings, doubled)
    twice = Problem()
    once = twice.terms
    twice.terms = lambda rows: Terms(*(2 * term for term in once(rows)))  # type: ignore[method-assign]
    wanted = step(method, twice, settings)
    for a, b in zip(got.gradient, wanted.gradient, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)
    assert got.grad_norm == pytest.approx(wanted.grad_norm, rel=1e-9)


def test_a_plain_gradient_is_reduced() -> None:
    one, two = (
        plain_gradient(p.parameters, p.objective, WHOLE, reduce)
        for p, reduce in ((Problem(), alone), (Problem(), doubled))
    )
    for a, b in zip(one.gradient, two.gradient, strict=True):
        assert torch.equal(2 * a, b)


@pytest.mark.parametrize(
    ("method", "settings", "evaluations"),
    [
        (exact, PenaltySettings(0.7, None), 3),
        (finite_difference, PenaltySettings(0.7, None), 2),
        (finite_difference, PenaltySettings(0.7, None, difference="central"), 3),
        (fast_difference, PenaltySettings(0.7, None), 2),
        (fast_difference, PenaltySettings(None, 0.3), 2),
    ],
)
def test_what_a_step_costs(method: Callable, settings: PenaltySettings, evaluations: float) -> None:
    assert step(method, Problem(), settings).evaluations == evaluations


@pytest.mark.parametrize("settings", [PenaltySettings(0.7, None), PenaltySettings(None, 0.3)])
@pytest.mark.parametrize("method", METHODS)
def test_where_the_gradient_is_zero_there_is_no_penalty(
    method: Callable, settings: PenaltySettings
) -> None:
    """E = x^2 at 0, with and without a rest."""
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    for slope in (0.0, 1.0):
        objective = Objective(lambda _, s=slope: Terms((x**2).sum(), (s * x).sum()))
        given = [x], objective, Split([None]), alone, settings
        got = method(*given, settings.weight) if method is fast_difference else method(*given)
        assert got.gradient[0].tolist() == [slope] * 3
        assert (got.penalty_share, got.grad_norm) == (0.0, 0.0)
        assert got.flatness_weight == (settings.weight or 0.0)
        assert got.evaluations == (2 if method is fast_difference else 1)


def test_a_weight_of_zero_is_zero() -> None:
    got = step(exact, Problem(), PenaltySettings(0.0, None))
    assert (got.flatness_weight, got.penalty_share) == (0.0, 0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_without_a_part_in_the_loss(method: Callable) -> None:
    problem = Problem()
    wanted = step(method, problem, PenaltySettings(0.7, None)).gradient
    problem.parameters.append(torch.ones(2, dtype=torch.float64, requires_grad=True))
    *got, unused = step(method, problem, PenaltySettings(0.7, None)).gradient
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert unused.tolist() == [0.0, 0.0]


def test_a_small_gradient_is_gone_along_in_one_sum_too() -> None:
    """Whether ||grad E|| is 0.01 or 100: with a known lambda no share is measured."""
    problem = Problem()
    once = problem.terms
    problem.terms = lambda rows: Terms(*(term / 1000 for term in once(rows)))  # type: ignore[method-assign]
    got = step(fast_difference, problem, PenaltySettings(0.7, None))
    assert 0 < got.grad_norm < 1
    assert got.penalty_share is None


def test_norms_beyond_float32() -> None:
    assert norm([torch.full((4,), 1e30)]) == pytest.approx(2e30)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_number_among_many(value: float) -> None:
    tensors = [torch.zeros(0), torch.ones(5), torch.ones(2, 3)]
    assert is_finite(tensors)
    tensors[2][1, 1] = value
    assert not is_finite(tensors)
