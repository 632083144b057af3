"""The penalty's gradient: exact and finite differences against one graph over the whole batch."""

from collections.abc import Callable

import pytest
import torch
from reference import penalised_gradient, relative_error
from torch import Tensor, nn

from flatgd.flatness import (
    Objective,
    PenaltySettings,
    Split,
    Terms,
    TermWeights,
    exact,
    fast_difference,
    finite_difference,
    plain_gradient,
)
from flatgd.flatness.penalty import moved, norm
from flatgd.losses import js_divergence, negative_log_likelihood

ROWS = 12
WHOLE = [torch.arange(ROWS)]
SINGLE = [torch.tensor([row]) for row in range(ROWS)]
UNEVEN = [torch.arange(0, 5), torch.arange(5, 6), torch.arange(6, ROWS)]


class Problem:
    """A small network with the safety loss as E and the likelihood as R."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        torch.manual_seed(3)
        self.network = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7)).to(dtype)
        self.parameters: list[Tensor] = list(self.network.parameters())
        self.inputs = torch.randn(ROWS, 5, dtype=torch.float64).to(dtype)
        self.clean, self.toxic = (
            torch.randn(ROWS, 7, dtype=torch.float64).log_softmax(-1).to(dtype) for _ in range(2)
        )
        self.targets = torch.randint(0, 7, (ROWS,))

    def terms(self, rows: Tensor) -> Terms:
        log_p = self.network(self.inputs[rows]).log_softmax(-1)
        attract = js_divergence(log_p, self.clean[rows]).sum()
        repel = js_divergence(log_p, self.toxic[rows]).sum()
        nll = negative_log_likelihood(log_p, self.targets[rows]).sum()
        return Terms((3 * attract - 2 * repel) / ROWS, nll / ROWS)

    @property
    def objective(self) -> Objective:
        return Objective(self.terms)

    def oracle(self, weight: float, squared: bool = True) -> list[Tensor]:
        rows = torch.arange(ROWS)
        return penalised_gradient(
            self.parameters,
            lambda: self.terms(rows).penalised,
            lambda: self.terms(rows).rest,
            weight,
            squared,
        )


def alone(gradient: list[Tensor]) -> None:
    """One process: nothing to add up."""


@pytest.mark.parametrize("micro_batches", [WHOLE, SINGLE, UNEVEN])
@pytest.mark.parametrize("squared", [True, False])
def test_exact_is_the_gradient_of_the_whole_batch(micro_batches: list, squared: bool) -> None:
    problem = Problem()
    settings = PenaltySettings(0.7, None, squared=squared)
    got = exact(problem.parameters, problem.objective, Split(micro_batches), alone, settings)
    assert relative_error(got.gradient, problem.oracle(0.7, squared)) <= 1e-14


@pytest.mark.parametrize(
    ("difference", "rho", "tolerance"),
    [("forward", 1e-4, 1e-4), ("central", 1e-4, 1e-8), ("central", 5e-4, 1e-6)],
)
@pytest.mark.parametrize("micro_batches", [WHOLE, UNEVEN])
def test_finite_difference_in_float64(
    difference: str, rho: float, tolerance: float, micro_batches: list
) -> None:
    problem = Problem()
    settings = PenaltySettings(0.7, None, difference=difference, rho=rho)
    got = finite_difference(
        problem.parameters, problem.objective, Split(micro_batches), alone, settings
    )
    assert relative_error(got.gradient, problem.oracle(0.7)) <= tolerance


@pytest.mark.parametrize(("difference", "order"), [("forward", 1), ("central", 2)])
def test_error_falls_with_the_order_of_the_difference(difference: str, order: int) -> None:
    """Halving rho divides the error by 2^order, up to the next term."""
    problem = Problem()
    wanted = problem.oracle(1.0)
    errors = []
    for rho in (2e-2, 1e-2):
        settings = PenaltySettings(1.0, None, difference=difference, rho=rho)
        got = finite_difference(
            problem.parameters, problem.objective, Split(WHOLE), alone, settings
        )
        errors.append(relative_error(got.gradient, wanted))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_float32_exact_agrees_with_float64() -> None:
    problem = Problem(torch.float32)
    settings = PenaltySettings(0.7, None)
    got = exact(problem.parameters, problem.objective, Split(WHOLE), alone, settings)
    assert relative_error(got.gradient, Problem().oracle(0.7)) <= 1e-5


def test_another_direction_than_the_gradients() -> None:
    """With v in the gradient's place, the penalty's gradient is 2 H v."""
    problem = Problem()
    v = [torch.randn_like(p) for p in problem.parameters]
    settings = PenaltySettings(0.7, None, difference="central", rho=1e-4)
    split = Split(UNEVEN)
    got = finite_difference(
        problem.parameters, problem.objective, split, alone, settings, lambda gradient: v
    )
    terms = problem.terms(torch.arange(ROWS))
    g = torch.autograd.grad(terms.penalised, problem.parameters, create_graph=True)
    along = torch.stack([(a * b).sum() for a, b in zip(g, v, strict=True)]).sum()
    hv = torch.autograd.grad(along, problem.parameters)
    plain = plain_gradient(problem.parameters, problem.objective, WHOLE, alone).gradient
    wanted = [a + 0.7 * 2 * b for a, b in zip(plain, hv, strict=True)]
    assert relative_error(got.gradient, wanted) < 1e-7
    assert got.grad_norm == pytest.approx(norm(v))


def test_penalty_of_a_quadratic_by_hand() -> None:
    """E = 1/2 x' A x with A = diag(1, 3) at x = (1, 1): g = (1, 3), H = A.

    grad ||g||^2 = 2 H g = (2, 18), and ||g||^2 = 10. With R = 0 and lambda = 1/2 the whole gradient
    is (1, 3) + (1, 9) = (2, 12).
    """
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([1.0, 3.0], dtype=torch.float64)

    def terms(_: object) -> Terms:
        return Terms(0.5 * (scale * x * x).sum(), x.new_zeros(()))

    for method in (exact, finite_difference):
        got = method([x], Objective(terms), Split([None]), alone, PenaltySettings(0.5, None))
        assert got.gradient[0].tolist() == pytest.approx([2.0, 12.0], rel=1e-9)
        assert got.grad_norm == pytest.approx(10**0.5)
        assert got.flatness_weight == 0.5


@pytest.mark.parametrize("method", [exact, finite_difference])
@pytest.mark.parametrize("squared", [True, False])
def test_share_fixes_the_penalty_relative_to_the_rest(method: Callable, squared: bool) -> None:
    problem = Problem()
    settings = PenaltySettings(None, 0.3, squared=squared)
    got = method(problem.parameters, problem.objective, Split(WHOLE), alone, settings)
    plain = plain_gradient(problem.parameters, problem.objective, WHOLE, alone)
    penalty = torch._foreach_sub(got.gradient, plain.gradient)
    assert norm(penalty) / norm(plain.gradient) == pytest.approx(0.3, rel=1e-12)
    assert got.penalty_share == pytest.approx(0.3, rel=1e-12)


def test_mean_of_micro_batch_norms_is_another_objective() -> None:
    """What the whole-batch rule guards against: the two differ by far more than rounding."""
    problem = Problem()
    wrong = [torch.zeros_like(p) for p in problem.parameters]
    for rows in SINGLE:
        part = exact(
            problem.parameters,
            problem.objective,
            Split([rows]),
            alone,
            PenaltySettings(0.7 * ROWS, None),
        )
        torch._foreach_add_(wrong, part.gradient)
    assert relative_error(wrong, problem.oracle(0.7)) > 0.01


@pytest.mark.parametrize("method", [exact, finite_difference])
def test_processes_add_up(method: Callable) -> None:
    """Two halves whose sums are exchanged by `reduce` give the gradient of the whole."""
    problem = Problem()
    settings = PenaltySettings(0.7, None, difference="central", rho=1e-4)
    halves = (list(torch.arange(0, 6).split(2)), list(torch.arange(6, ROWS).split(3)))
    barrier: dict[int, list[list[Tensor]]] = {}

    def worker(rank: int, pending: list[list[Tensor]]) -> Callable[[list[Tensor]], None]:
        calls = iter(range(100))

        def reduce(gradient: list[Tensor]) -> None:
            call = next(calls)
            pending.append([t.clone() for t in gradient])
            others = barrier.get(1 - rank)
            if others and call < len(others):
                torch._foreach_add_(gradient, others[call])

        return reduce

    # fixed-point rounds: each round the ranks read the sums the other sent in the round before
    for _ in range(4):
        sent: dict[int, list[list[Tensor]]] = {0: [], 1: []}
        results = [
            method(
                problem.parameters,
                problem.objective,
                Split(halves[r]),
                worker(r, sent[r]),
                settings,
            )
            for r in (0, 1)
        ]
        barrier = sent
    for result in results:
        assert relative_error(result.gradient, problem.oracle(0.7)) <= 1e-7


def test_plain_gradient_is_that_of_the_sum() -> None:
    problem = Problem()
    got = plain_gradient(problem.parameters, problem.objective, UNEVEN, alone)
    assert relative_error(got.gradient, problem.oracle(0.0)) <= 1e-14
    assert got.grad_norm is None


def test_rest_without_graph_is_left_out() -> None:
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def terms(_: object) -> Terms:
        return Terms((x**3).sum(), torch.zeros((), dtype=torch.float64))

    got = exact([x], Objective(terms), Split([None]), alone, PenaltySettings(1.0, None))
    # g = 3, H = 6: 3 + 2 * 6 * 3 = 39 in each place
    assert got.gradient[0].tolist() == pytest.approx([39.0, 39.0])


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_weights_are_restored_bit_for_bit(failure: type[BaseException]) -> None:
    problem = Problem(torch.float32)
    before = [p.detach().clone() for p in problem.parameters]
    calls = iter(range(10))

    def terms(rows: Tensor) -> Terms:
        if next(calls) == 2:  # the second pass, in the midst of it
            assert not torch.equal(problem.parameters[0], before[0])
            raise failure
        return problem.terms(rows)

    halves = [torch.arange(0, 6), torch.arange(6, ROWS)]
    with pytest.raises(failure):
        finite_difference(
            problem.parameters, Objective(terms), Split(halves), alone, PenaltySettings(None, 0.3)
        )
    assert all(torch.equal(p, b) for p, b in zip(problem.parameters, before, strict=True))
    assert all(p.grad is None for p in problem.parameters)


def test_weights_are_restored_after_the_pass() -> None:
    problem = Problem(torch.float32)
    before = [p.detach().clone() for p in problem.parameters]
    for difference in ("forward", "central"):
        settings = PenaltySettings(None, 0.3, difference=difference)
        finite_difference(problem.parameters, problem.objective, Split(SINGLE), alone, settings)
    assert all(torch.equal(p, b) for p, b in zip(problem.parameters, before, strict=True))


def test_moved_goes_the_given_length() -> None:
    x = torch.zeros(4)
    with moved([x], [torch.tensor([0.0, 3.0, 0.0, 4.0])], 0.1):
        assert x.norm().item() == pytest.approx(0.5)
    assert x.norm().item() == 0.0


def test_gradients_left_in_place_are_not_touched() -> None:
    problem = Problem()
    kept = torch.full_like(problem.parameters[0], 7.0)
    problem.parameters[0].grad = kept
    exact(problem.parameters, problem.objective, Split(WHOLE), alone, PenaltySettings(0.7, None))
    assert problem.parameters[0].grad is kept
    assert (kept == 7.0).all()


def test_norm_adds_up_in_float64() -> None:
    assert norm([torch.full((10,), 3.0), torch.full((10,), 4.0)]) == pytest.approx(250**0.5)


@pytest.mark.parametrize(("weight", "share"), [(None, None), (0.1, 0.1)])
def test_exactly_one_of_weight_and_share(weight: float | None, share: float | None) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        PenaltySettings(weight, share)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("micro_batches", [WHOLE, UNEVEN])
def test_fast_with_a_known_weight(sign: int, micro_batches: list) -> None:
    """One backward a pass: all but the subtracted g at theta + rho u, so off by O(rho)."""
    problem = Problem()
    errors = []
    for rho in (1e-3, 1e-4):
        settings = PenaltySettings(0.7, None, rho=sign * rho)
        got = fast_difference(
            problem.parameters, problem.objective, Split(micro_batches), alone, settings, 0.7
        )
        errors.append(relative_error(got.gradient, problem.oracle(0.7)))
        assert got.flatness_weight == 0.7
        assert got.evaluations == 2
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)


def test_fast_by_hand() -> None:
    """E = x^2, R = 3 x^2 at x = 1, rho 0.1: g = 2, u = 1; at 1.1 grad E = 2.2, grad R = 6.6.

    H u = (2.2 - 2) / 0.1 = 2; with lambda 1/2 the penalty adds 1/2 * 2 * 2 * 2 = 4: in all 12.8.
    """
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    objective = Objective(lambda _: Terms((x**2).sum(), 3 * (x**2).sum()))
    settings = PenaltySettings(0.5, None, rho=0.1)
    for weight in (0.5, None):  # in one sum, and kept apart
        got = fast_difference([x], objective, Split([None]), alone, settings, weight)
        assert got.gradient[0].item() == pytest.approx(12.8)
        assert (got.grad_norm, got.flatness_weight) == (pytest.approx(2.0), 0.5)
    assert x.item() == 1.0


def test_fast_measures_the_share_where_lambda_is_not_known() -> None:
    problem = Problem()
    settings = PenaltySettings(None, 0.3, rho=1e-4)
    slow = finite_difference(problem.parameters, problem.objective, Split(UNEVEN), alone, settings)
    fast = fast_difference(
        problem.parameters, problem.objective, Split(UNEVEN), alone, settings, None
    )
    assert fast.penalty_share == pytest.approx(0.3)
    assert fast.flatness_weight == pytest.approx(slow.flatness_weight, rel=1e-3)
    assert relative_error(fast.gradient, slow.gradient) < 1e-3


@pytest.mark.parametrize("method", [exact, finite_difference, fast_difference])
def test_a_split_penalises_the_mean_over_its_rows(method: Callable) -> None:
    """A third of the rows, lifted threefold: their mean's norm is penalised, all rows count in the
    rest."""
    problem = Problem()
    some, others = torch.arange(0, 4), torch.arange(4, ROWS)
    wanted = penalised_gradient(
        problem.parameters,
        lambda: 3 * problem.terms(some).penalised,
        lambda: (
            problem.terms(torch.arange(ROWS)).rest
            + problem.terms(torch.arange(ROWS)).penalised
            - 3 * problem.terms(some).penalised
        ),
        0.7,
    )
    settings = PenaltySettings(0.7, None, rho=1e-5)
    split = Split([some[:1], some[1:]], [others], 3.0)
    given = problem.parameters, problem.objective, split, alone, settings
    got = method(*given, 0.7) if method is fast_difference else method(*given)
    assert relative_error(got.gradient, wanted) < 1e-4
    assert got.evaluations == pytest.approx({exact: 1 + 2 / 3}.get(method, 1 + 1 / 3))


def test_a_mixed_sum_is_asked_where_there_is_one() -> None:
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    asked: list[TermWeights] = []

    def mixed(batch: object, mix: TermWeights) -> Tensor:
        assert batch == "rows"
        asked.append(mix)
        return (mix.penalised * x**2 + mix.rest * 3 * x**2).sum()

    objective = Objective(lambda _: Terms((x**2).sum(), 3 * (x**2).sum()), mixed)
    assert plain_gradient([x], objective, ["rows"], alone).gradient[0].item() == 8.0
    settings = PenaltySettings(0.5, None, rho=0.1)
    got = fast_difference([x], objective, Split(["rows"]), alone, settings, 0.5)
    assert got.gradient[0].item() == pytest.approx(12.8)
    assert asked == [
        TermWeights(1.0, 1.0),
        TermWeights(1.0, 0.0),
        TermWeights(pytest.approx(21.0), 1.0),
    ]
