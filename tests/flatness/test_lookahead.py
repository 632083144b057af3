"""The penalty's gradient in one pass at a point ahead, and the penalty on some parameters alone."""

from collections.abc import Callable

import pytest
import torch
from reference import relative_error
from test_flatness import ROWS, SINGLE, UNEVEN, WHOLE, Problem, alone
from torch import Tensor

from flatgd.flatness import (
    Mean,
    Measured,
    Objective,
    PenaltySettings,
    Split,
    Terms,
    finite_difference,
    lookahead,
    measured_lookahead,
    plain_gradient,
    reused_penalty,
)
from flatgd.flatness.penalty import norm, penalised_gradient

FIXED = PenaltySettings(0.5, None)


def without_rest() -> Problem:
    problem = Problem()
    whole = problem.terms
    problem.terms = lambda rows: Terms(whole(rows).penalised, torch.zeros(()))  # type: ignore[method-assign]
    return problem


def ahead(
    problem: Problem, weight: float, mean: list[Tensor] | None, split: Split | None = None
) -> list[Tensor]:
    given = problem.parameters, problem.objective, split or Split(WHOLE), alone, FIXED
    return lookahead(*given, mean and of(mean), weight)[0].gradient


def of(gradient: list[Tensor]) -> Mean:
    return Mean(gradient, norm(gradient))


def gradient_of(problem: Problem, micro_batches: list = WHOLE) -> list[Tensor]:
    return penalised_gradient(problem.parameters, problem.objective, micro_batches, alone)


def test_on_a_quadratic_it_is_the_whole_gradient_by_hand() -> None:
    """E = 1/2 x' A x, A = diag(1, 3), x = (1, 1), lambda = 1/2, as in test_flatness: m = grad E
    = (1, 3), the point ahead is (2, 4), and grad E there (2, 12)."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)
    objective = Objective(lambda _: Terms(0.5 * (scale * x * x).sum(), x.new_zeros(())))
    flat, g = lookahead([x], objective, Split([None]), alone, FIXED, of([scale.clone()]), 0.5)
    assert flat.gradient[0].tolist() == [2.0, 12.0]
    assert (flat.flatness_weight, flat.grad_norm) == (0.5, None)
    assert (flat.evaluations, flat.penalty_share) == (1.0, None)
    assert g[0].tolist() == [2.0, 12.0]
    assert x.tolist() == [1.0, 1.0]


def test_without_a_rest_the_error_is_of_second_order() -> None:
    """Against double backward: halving lambda quarters the distance, up to the next term."""
    problem = without_rest()
    mean = gradient_of(problem)
    plain = norm(mean)
    errors = []
    for weight in (2e-2, 1e-2):
        wanted = problem.oracle(weight)
        errors.append(relative_error(ahead(problem, weight, mean), wanted) * norm(wanted) / plain)
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_the_rest_is_taken_ahead_too() -> None:
    """The distance to grad J is then 2 lambda H_R m, to first order."""
    problem, weight = Problem(), 1e-5
    mean = gradient_of(problem)
    got = ahead(problem, weight, mean)
    rest = problem.terms(torch.arange(ROWS)).rest
    grads = torch.autograd.grad(rest, problem.parameters, create_graph=True)
    along = torch.stack([(a * b).sum() for a, b in zip(grads, mean, strict=True)]).sum()
    product = torch.autograd.grad(along, problem.parameters)
    pairs = zip(problem.oracle(weight), product, strict=True)
    assert relative_error(got, [a + 2 * weight * b for a, b in pairs]) < 1e-9
    assert relative_error(got, problem.oracle(weight)) > 1e-6


@pytest.mark.parametrize("micro_batches", [SINGLE, UNEVEN])
def test_micro_batches_and_a_split_change_nothing(micro_batches: list) -> None:
    problem = Problem()
    mean = gradient_of(problem)
    whole = ahead(problem, 0.1, mean)
    for split in (
        Split(micro_batches),
        Split(micro_batches[:1], micro_batches[1:], 3.0),
        Split([], micro_batches),
    ):
        assert relative_error(ahead(problem, 0.1, mean, split), whole) < 1e-13


def test_the_fresh_gradient_is_that_of_the_penalised_rows() -> None:
    """Their mean, at the point ahead: here 5 of 12 rows, so the rescale is 12 / 5."""
    problem = Problem()
    mean = gradient_of(problem)
    split = Split(UNEVEN[:1], UNEVEN[1:], ROWS / 5)
    given = problem.parameters, problem.objective, split, alone, FIXED
    fresh = lookahead(*given, of(mean), 0.1)[1]
    with torch.no_grad():
        for parameter, step in zip(problem.parameters, mean, strict=True):
            parameter.add_(step, alpha=0.2)
    wanted = [ROWS / 5 * tensor for tensor in gradient_of(problem, UNEVEN[:1])]
    assert relative_error(fresh, wanted) < 1e-14


def test_the_penalty_of_the_norm_goes_the_length_of_lambda() -> None:
    """grad of lambda ||grad E|| is lambda H u: the step ahead is lambda u, u = (1, 3) / sqrt 10."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)
    objective = Objective(lambda _: Terms(0.5 * (scale * x * x).sum(), x.new_zeros(())))
    settings = PenaltySettings(0.5, None, squared=False)
    flat, _ = lookahead([x], objective, Split([None]), alone, settings, of([scale.clone()]), 0.5)
    wanted = scale + 0.5 * scale * scale / 10**0.5
    assert flat.gradient[0].tolist() == pytest.approx(wanted.tolist())


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_without_a_mean_or_a_weight_it_is_the_plain_gradient(weight: float) -> None:
    problem = Problem()
    plain = plain_gradient(problem.parameters, problem.objective, WHOLE, alone).gradient
    for mean in ([torch.full_like(p, weight == 0.0) for p in problem.parameters], None):
        assert relative_error(ahead(problem, weight, mean), plain) < 1e-15


def test_several_processes_add_up_and_weights_come_back() -> None:
    problem = Problem()
    mean = gradient_of(problem)
    before = [p.detach().clone() for p in problem.parameters]
    once = ahead(problem, 0.1, mean)

    def doubled(gradient: list[Tensor]) -> None:
        torch._foreach_mul_(gradient, 2.0)

    given = problem.parameters, problem.objective, Split(WHOLE), doubled, FIXED
    flat, fresh = lookahead(*given, of(mean), 0.1)
    assert all(torch.equal(a, 2 * b) for a, b in zip(flat.gradient, once, strict=True))
    assert norm(fresh) > 0
    assert all(torch.equal(a, b) for a, b in zip(problem.parameters, before, strict=True))


def settled(given: tuple, mean: list[Tensor], distance: float) -> Measured:
    """Measure until the distance has settled."""
    found = measured_lookahead(*given, of(mean), 0.0, distance)
    for _ in range(9):
        if not found.is_settled:
            found = measured_lookahead(*given, of(mean), found.weight, found.longest)
    return found


@pytest.mark.parametrize("distance", [1e-4, 1e-2, 10.0])
@pytest.mark.parametrize("wanted", [0.1, 0.3])
def test_the_share_is_that_of_the_whole_gradients_change(wanted: float, distance: float) -> None:
    problem, split = Problem(), Split(UNEVEN[:1], UNEVEN[1:], ROWS / 5)
    mean = gradient_of(problem)
    given = problem.parameters, problem.objective, split, alone, PenaltySettings(None, wanted)
    flat, fresh, weight, longest, is_settled = settled(given, mean, distance)
    plain = plain_gradient(problem.parameters, problem.objective, WHOLE, alone).gradient
    share = flat.penalty_share
    assert relative_error(flat.gradient, plain) == pytest.approx(share)
    assert is_settled
    assert wanted / 1.5 <= share <= wanted * 1.5
    assert weight == pytest.approx(longest / (2 * norm(mean)))
    assert weight == pytest.approx(flat.flatness_weight)
    for lead in ((weight, 1e9), (1e9, longest)):
        again = lookahead(*given, of(mean), *lead)[0]
        assert again.flatness_weight == pytest.approx(flat.flatness_weight)
        assert relative_error(again.gradient, flat.gradient) < 1e-13
    assert relative_error(fresh, [ROWS / 5 * g for g in gradient_of(problem, UNEVEN[:1])]) < 1e-13
    assert flat.grad_norm == pytest.approx(norm(fresh))
    assert flat.evaluations == 2


def test_too_far_ahead_there_is_no_penalty() -> None:
    """The step is then plain, and the next measurement begins nearer."""
    problem, mean = Problem(), gradient_of(Problem())
    given = problem.parameters, problem.objective, Split(WHOLE), alone, PenaltySettings(None, 0.2)
    found = measured_lookahead(*given, of(mean), 0.0, 1e9)
    flat = found.gradient
    plain = plain_gradient(problem.parameters, problem.objective, WHOLE, alone).gradient
    assert relative_error(flat.gradient, plain) < 1e-14
    assert (flat.penalty_share, flat.flatness_weight, flat.evaluations) == (0.0, 0.0, 2.0)
    assert found.longest < 1e9 / 2
    assert not found.is_settled


@pytest.mark.parametrize("share", [0.05, 0.13, 0.14, 0.29, 0.31])
def test_a_share_may_miss_the_one_wanted_by_half(share: float) -> None:
    """Farther off, the distance is corrected; a larger share is no penalty."""
    problem, mean = Problem(), gradient_of(Problem())
    given = problem.parameters, problem.objective, Split(WHOLE), alone
    low, high = 1e-4, 10.0
    for _ in range(60):  # the distance of this share, by bisection
        distance = (low + high) / 2
        found = measured_lookahead(*given, PenaltySettings(None, 1e6), of(mean), 0.0, distance)
        low, high = (distance, high) if found.gradient.penalty_share < share else (low, distance)
    found = measured_lookahead(*given, PenaltySettings(None, 0.2), of(mean), 0.0, distance)
    assert found.is_settled == (0.2 / 1.5 <= share <= 0.2 * 1.5)
    assert found.gradient.penalty_share == pytest.approx(share if share <= 0.3 else 0.0)
    factor = 1.0 if found.is_settled else 0.2 / share
    assert found.longest == pytest.approx(distance * factor)


def test_a_gradient_that_is_not_finite_is_too_far_ahead() -> None:
    """E = -sqrt(1 - x^2) at x = 0.1; a step of 5 leaves its domain, one of 5 / 30 does not."""
    x = torch.full((1,), 0.1, dtype=torch.float64, requires_grad=True)
    objective = Objective(lambda _: Terms(-(1 - x * x).sqrt().sum(), x.new_zeros(())))
    given = [x], objective, Split([None]), alone, PenaltySettings(None, 0.5)
    mean = [torch.ones(1, dtype=torch.float64)]
    found = measured_lookahead(*given, of(mean), 0.0, 5.0)
    assert (found.gradient.penalty_share, found.is_settled) == (0.0, False)
    assert found.longest == pytest.approx(5 / 300)
    found = settled(given, mean, 5.0)
    assert 0.5 / 1.5 <= found.gradient.penalty_share <= 0.5 * 1.5
    assert 0 < found.longest < 0.9


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_measurement_goes_as_far_as_the_last_one_says(weight: float) -> None:
    problem, mean = Problem(), gradient_of(Problem())
    given = problem.parameters, problem.objective, Split(WHOLE), alone, PenaltySettings(None, 0.5)
    far = 2 * weight * norm(mean) or 1e-3
    found = measured_lookahead(*given, of(mean), weight, 1e9 if weight else 1e-3)
    used = found.gradient.flatness_weight
    assert used == pytest.approx(far / (2 * norm(mean)))
    again = measured_lookahead(*given, of(mean), 1e9, far)
    assert again.longest == pytest.approx(found.longest)


def test_without_a_mean_or_a_change_there_is_no_penalty() -> None:
    """For a linear E, whose gradient is the same everywhere, the distance grows."""
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    objective = Objective(lambda _: Terms(x.sum(), x.new_zeros(())))
    given = [x], objective, Split([None]), alone, PenaltySettings(None, 0.2)
    for value, factor in ((0.0, 1.0), (1.0, 300.0)):
        mean = [torch.full((2,), value, dtype=torch.float64)]
        found = measured_lookahead(*given, of(mean), 0.0, 0.5)
        assert found.gradient.penalty_share == 0.0
        assert found.gradient.gradient[0].tolist() == found.fresh[0].tolist() == [1.0, 1.0]
        assert found.longest == pytest.approx(0.5 * factor)
        assert not found.is_settled


def test_a_zero_gradient_of_the_covered_parameters() -> None:
    problem, settings = Problem(), PenaltySettings(0.5, None)
    whole = problem.terms

    def terms(rows: Tensor) -> Terms:
        return Terms(0.0 * problem.parameters[0].sum(), whole(rows).rest)

    problem.terms = terms  # type: ignore[method-assign]
    given = problem.parameters, problem.objective, Split(WHOLE), alone, settings
    flat = finite_difference(*given, covered=[2, 3])
    assert flat.penalty is not None
    assert [p.shape for p in flat.penalty] == [p.shape for p in problem.parameters[2:]]
    assert flat.grad_norm == 0.0


@pytest.mark.parametrize("covered", [None, [1, 3]])
@pytest.mark.parametrize("settings", [FIXED, PenaltySettings(None, 0.3)])
def test_a_penalty_that_is_used_again(settings: PenaltySettings, covered: list | None) -> None:
    """On other rows it is their plain gradient and the same direction: by lambda, or by share."""
    problem, rest = Problem(), [UNEVEN[2]]
    given = problem.parameters, problem.objective
    first = finite_difference(*given, Split(WHOLE), alone, settings, covered=covered)
    assert first.penalty is not None
    again = reused_penalty(*given, rest, alone, settings, first.penalty, covered)
    plain = plain_gradient(*given, rest, alone).gradient
    size, places = norm(first.penalty), covered or range(4)
    weight = 0.5 if settings.weight else 0.3 * norm(plain) / size
    for place, tensor in zip(places, first.penalty, strict=True):
        plain[place] = plain[place] + weight * tensor
    assert relative_error(again.gradient, plain) < 1e-14
    assert again.flatness_weight == pytest.approx(weight)
    assert (again.evaluations, again.grad_norm) == (1, None)


def test_the_penalty_of_a_step_is_what_it_adds_for_a_lambda_of_one() -> None:
    problem, weight = Problem(), 0.7
    settings = PenaltySettings(weight, None, rho=1e-4)
    given = problem.parameters, problem.objective, Split(UNEVEN), alone, settings
    flat = finite_difference(*given)
    plain = plain_gradient(problem.parameters, problem.objective, WHOLE, alone).gradient
    assert flat.penalty is not None
    pairs = zip(plain, flat.penalty, strict=True)
    assert relative_error([a + weight * b for a, b in pairs], flat.gradient) < 1e-14


@pytest.mark.parametrize("places", [[0], [2, 3], [0, 1, 2, 3]])
def test_a_penalty_that_covers_some_parameters(places: list[int]) -> None:
    """By double backward: with v = grad E there and 0 elsewhere, H v there and 0 elsewhere."""
    problem, weight = Problem(), 0.7
    settings = PenaltySettings(weight, None, difference="central", rho=1e-4)
    given = problem.parameters, problem.objective, Split(UNEVEN), alone, settings
    got = finite_difference(*given, covered=places)
    terms = problem.terms(torch.arange(ROWS))
    g = torch.autograd.grad(terms.penalised, problem.parameters, create_graph=True)
    own = torch.stack([(g[i] ** 2).sum() for i in places]).sum()
    slope = torch.autograd.grad(own, [problem.parameters[i] for i in places])
    wanted = plain_gradient(problem.parameters, problem.objective, WHOLE, alone).gradient
    for place, tensor in zip(places, slope, strict=True):
        wanted[place] = wanted[place] + weight * tensor
    assert relative_error(got.gradient, wanted) < 1e-7
    assert got.grad_norm == pytest.approx(own.item() ** 0.5)
    assert all(p.requires_grad for p in problem.parameters)


def test_covered_parameters_alone_move_and_are_differentiated() -> None:
    problem, seen = Problem(), []
    before = [p.detach().clone() for p in problem.parameters]
    original: Callable = problem.terms

    def watched(rows: Tensor) -> Terms:
        pairs = zip(problem.parameters, before, strict=True)
        moved = [not torch.equal(a, b) for a, b in pairs]
        seen.append((moved, [p.requires_grad for p in problem.parameters]))
        return original(rows)

    problem.terms = watched  # type: ignore[method-assign]
    given = problem.parameters, problem.objective, Split(WHOLE), alone, FIXED
    finite_difference(*given, covered=[2, 3])
    assert seen == [([False] * 4, [True] * 4), ([False, False, True, True],) * 2]
