"""The penalty's gradient: exact and finite differences against one graph over the whole batch."""

from collections.abc import Callable

import pytest
import torch
from reference import penalised_gradient, relative_error
from torch import Tensor, nn

from flatgd.flatness import PenaltySettings, Terms, exact, finite_difference, plain_gradient
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
    got = exact(problem.parameters, problem.terms, micro_batches, alone, settings)
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
    got = finite_difference(problem.parameters, problem.terms, micro_batches, alone, settings)
    assert relative_error(got.gradient, problem.oracle(0.7)) <= tolerance


@pytest.mark.parametrize(("difference", "order"), [("forward", 1), ("central", 2)])
def test_error_falls_with_the_order_of_the_difference(difference: str, order: int) -> None:
    """Halving rho divides the error by 2^order, up to the next term."""
    problem = Problem()
    wanted = problem.oracle(1.0)
    errors = []
    for rho in (2e-2, 1e-2):
        settings = PenaltySettings(1.0, None, difference=difference, rho=rho)
        got = finite_difference(problem.parameters, problem.terms, WHOLE, alone, settings)
        errors.append(relative_error(got.gradient, wanted))
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_float32_exact_agrees_with_float64() -> None:
    problem = Problem(torch.float32)
    settings = PenaltySettings(0.7, None)
    got = exact(problem.parameters, problem.terms, WHOLE, alone, settings)
    assert relative_error(got.gradient, Problem().oracle(0.7)) <= 1e-5


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
        got = method([x], terms, [None], alone, PenaltySettings(0.5, None))
        assert got.gradient[0].tolist() == pytest.approx([2.0, 12.0], rel=1e-9)
        assert got.grad_norm == pytest.approx(10**0.5)
        assert got.flatness_weight == 0.5


@pytest.mark.parametrize("method", [exact, finite_difference])
@pytest.mark.parametrize("squared", [True, False])
def test_share_fixes_the_penalty_relative_to_the_rest(method: Callable, squared: bool) -> None:
    problem = Problem()
    settings = PenaltySettings(None, 0.3, squared=squared)
    got = method(problem.parameters, problem.terms, WHOLE, alone, settings)
    plain = plain_gradient(problem.parameters, problem.terms, WHOLE, alone)
    penalty = torch._foreach_sub(got.gradient, plain.gradient)
    assert norm(penalty) / norm(plain.gradient) == pytest.approx(0.3, rel=1e-12)
    assert got.penalty_share == pytest.approx(0.3, rel=1e-12)


def test_mean_of_micro_batch_norms_is_another_objective() -> None:
    """What the whole-batch rule guards against: the two differ by far more than rounding."""
    problem = Problem()
    wrong = [torch.zeros_like(p) for p in problem.parameters]
    for rows in SINGLE:
        part = exact(
            problem.parameters, problem.terms, [rows], alone, PenaltySettings(0.7 * ROWS, None)
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
            method(problem.parameters, problem.terms, halves[r], worker(r, sent[r]), settings)
            for r in (0, 1)
        ]
        barrier = sent
    for result in results:
        assert relative_error(result.gradient, problem.oracle(0.7)) <= 1e-7


def test_plain_gradient_is_that_of_the_sum() -> None:
    problem = Problem()
    got = plain_gradient(problem.parameters, problem.terms, UNEVEN, alone)
    assert relative_error(got.gradient, problem.oracle(0.0)) <= 1e-14
    assert got.grad_norm is None


def test_flat_place_has_no_penalty() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def terms(_: object) -> Terms:
        return Terms((x**2).sum(), (x + 1).sum())

    for method in (exact, finite_difference):
        got = method([x], terms, [None], alone, PenaltySettings(None, 0.3))
        assert got.gradient[0].tolist() == [1.0, 1.0, 1.0]
        assert got.penalty_share == 0.0


def test_rest_without_graph_is_left_out() -> None:
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def terms(_: object) -> Terms:
        return Terms((x**3).sum(), torch.zeros((), dtype=torch.float64))

    got = exact([x], terms, [None], alone, PenaltySettings(1.0, None))
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
        finite_difference(problem.parameters, terms, halves, alone, PenaltySettings(None, 0.3))
    assert all(torch.equal(p, b) for p, b in zip(problem.parameters, before, strict=True))
    assert all(p.grad is None for p in problem.parameters)


def test_weights_are_restored_after_the_pass() -> None:
    problem = Problem(torch.float32)
    before = [p.detach().clone() for p in problem.parameters]
    for difference in ("forward", "central"):
        settings = PenaltySettings(None, 0.3, difference=difference)
        finite_difference(problem.parameters, problem.terms, SINGLE, alone, settings)
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
    exact(problem.parameters, problem.terms, WHOLE, alone, PenaltySettings(0.7, None))
    assert problem.parameters[0].grad is kept
    assert (kept == 7.0).all()


def test_norm_adds_up_in_float64() -> None:
    assert norm([torch.full((10,), 3.0), torch.full((10,), 4.0)]) == pytest.approx(250**0.5)


@pytest.mark.parametrize(("weight", "share"), [(None, None), (0.1, 0.1)])
def test_exactly_one_of_weight_and_share(weight: float | None, share: float | None) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        PenaltySettings(weight, share)
