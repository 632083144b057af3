"""The estimated error of a finite difference, against errors that are known."""

import pytest
import torch
from reference import relative_error
from test_flatness import UNEVEN, Problem, alone
from torch import Tensor

from flatgd.flatness import Objective, PenaltySettings, Split, Terms, best, exact, step_errors
from flatgd.flatness.penalty import finite_difference, plain_gradient
from flatgd.flatness.step_length import cast_error

RHOS = (1e-2, 1e-3, 1e-4)


def errors(problem: Problem, difference: str, rhos: tuple[float, ...] = RHOS) -> list[float]:
    given = problem.parameters, problem.objective, UNEVEN, alone
    return [found.error for found in step_errors(*given, rhos, difference)]


def penalty(problem: Problem, method: object, settings: PenaltySettings) -> list[Tensor]:
    given = problem.parameters, problem.objective, Split(UNEVEN), alone
    without = plain_gradient(problem.parameters, problem.objective, UNEVEN, alone)
    whole = method(*given, settings)  # type: ignore[operator]
    return [a - b for a, b in zip(whole.gradient, without.gradient, strict=True)]


@pytest.mark.parametrize("difference", ["forward", "central"])
def test_the_estimate_is_the_error(difference: str) -> None:
    """In float64 there is no noise: the estimate is within 30 % of the truncation error."""
    problem = Problem()
    wanted = penalty(problem, exact, PenaltySettings(1.0, None))
    for rho, found in zip(RHOS, errors(problem, difference), strict=True):
        settings = PenaltySettings(1.0, None, difference=difference, rho=rho)  # type: ignore[arg-type]
        true = relative_error(penalty(problem, finite_difference, settings), wanted)
        if true > 1e-9:  # below it, rounding
            assert found == pytest.approx(true, rel=0.3)


def test_by_hand() -> None:
    """E = x^3 at 1: d+ = 3 x (2 + rho) and d- = 3 x (2 - rho), so the error is rho / 2."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    objective = Objective(lambda _: Terms((x**3).sum(), x.new_zeros(())))
    for found in step_errors([x], objective, [None], alone, (0.1, 0.01)):
        assert found.error == pytest.approx(found.rho / 2)
    assert x.tolist() == [1.0]


def test_a_step_below_the_rounding_is_seen_as_noise() -> None:
    """In float32 a step of 1e-9 is lost in the weights; the best of several is none of the ends."""
    problem = Problem(torch.float32)
    given = problem.parameters, problem.objective, UNEVEN, alone
    found = step_errors(*given, (1e-9, 1e-3, 10.0))
    assert found[0].error > 0.5
    assert best(found).rho == 1e-3


def test_where_the_gradient_is_zero_there_is_no_error() -> None:
    x = torch.zeros(2, requires_grad=True)
    objective = Objective(lambda _: Terms((x**2).sum(), x.new_zeros(())))
    assert step_errors([x], objective, [None], alone, (0.1,)) == [(0.1, 0.0)]


def test_a_cast_that_swallows_the_step() -> None:
    """1 has neighbours 2^-8 below and 2^-7 above in bfloat16: a step of 2^-7 survives, one of 2^-10
    does not. Vectors are not cast."""
    weight, vector = torch.ones(2, 2), torch.ones(2)
    along = [torch.ones(2, 2), torch.ones(2)]
    given = [weight, vector], along
    assert cast_error(*given, 2**-7, torch.bfloat16) == 0.0
    assert cast_error(*given, 2**-10, torch.bfloat16) == 1.0
    assert cast_error([vector], [along[1]], 2**-10, torch.bfloat16) == 0.0
    lost = step_errors(
        [weight.requires_grad_()],
        Objective(lambda _: Terms((weight**3).sum(), weight.new_zeros(()))),
        [None],
        alone,
        (2**-10,),
        cast_to=torch.bfloat16,
    )
    assert lost[0].error == 1.0
