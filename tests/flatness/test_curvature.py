"""Curvature against the dense Hessian of a tiny model in float64, and against closed forms."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from flatgd.flatness import curvature
from flatgd.flatness.curvature import (
    gradient,
    hessian_vector,
    loss_value,
    relative_direction,
    relative_flatness,
    top_eigenvalue,
    trace,
    under_random,
    under_worst,
)
from flatgd.flatness.penalty import moved

Case = tuple[nn.Module, list[Tensor], Callable[[], Iterator[Tensor]]]


@pytest.fixture
def case() -> Case:
    """A network of two layers with ReLU on eight points, its loss in two parts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.tensor([0, 1] * 4)

    def losses() -> Iterator[Tensor]:
        for part in (slice(0, 3), slice(3, 8)):
            yield nn.functional.cross_entropy(model(x[part]), y[part], reduction="sum") / 8

    return model, list(model.parameters()), losses


def dense_hessian(parameters: list[Tensor], losses: Callable[[], Iterator[Tensor]]) -> Tensor:
    """Row by row, by differentiating each entry of the gradient."""
    total = torch.stack(list(losses())).sum()
    grads = torch.autograd.grad(total, parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in grads])
    rows = []
    for entry in flat:
        row = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(row, parameters, strict=True)
        rows.append(
            torch.cat([(torch.zeros_like(p) if r is None else r).reshape(-1) for r, p in pairs])
        )
    return torch.stack(rows)


def split(flat: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_products_spectrum_and_trace_are_those_of_the_dense_hessian(case: Case) -> None:
    _, parameters, losses = case
    dense = dense_hessian(parameters, losses)
    torch.manual_seed(3)
    vector = torch.randn(len(dense), dtype=torch.float64)
    product = hessian_vector(parameters, losses, split(vector, parameters))
    assert torch.allclose(torch.cat([p.reshape(-1) for p in product]), dense @ vector, atol=1e-12)
    top = top_eigenvalue(parameters, losses, seeded(), steps=len(dense))
    assert top == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)
    estimate = trace(parameters, losses, seeded(), probes=600)
    assert abs(estimate.value - float(dense.trace())) < 4 * estimate.error
    assert estimate.error < 0.1 * float(dense.trace())


def by_blocks(parameters: list[Tensor], dense: Tensor) -> float:
    """Relative flatness by its definition: over pairs of rows of each matrix, <w, w'> tr(H_ss')."""
    total, start = 0.0, 0
    for weights in [p.detach() for p in parameters]:
        if weights.dim() == 2:
            rows, width = weights.shape
            for s in range(rows):
                for t in range(rows):
                    a, b = start + s * width, start + t * width
                    block = dense[a : a + width, b : b + width]
                    total += float(weights[s] @ weights[t]) * float(block.trace())
        start += weights.numel()
    return total


def test_relative_flatness_is_its_definition(case: Case) -> None:
    _, parameters, losses = case
    wanted = by_blocks(parameters, dense_hessian(parameters, losses))
    estimate = relative_flatness(parameters, losses, seeded(), probes=800)
    assert abs(estimate.value - wanted) < 4 * estimate.error
    assert estimate.error < 0.2 * abs(wanted)


def test_rescaling_layers_leaves_relative_flatness_and_moves_the_trace(case: Case) -> None:
    """relu(c W1 x) W2 / c is the same function. In the definition <w, w'> grows by c^2 where the
    block shrinks by c^2; the plain trace keeps the shrunken and the grown blocks."""
    model, parameters, losses = case
    before = dense_hessian(parameters, losses)
    value, kappa = loss_value(losses), by_blocks(parameters, before)
    with torch.no_grad():
        model[0].weight.mul_(10.0)
        model[2].weight.div_(10.0)
    after = dense_hessian(parameters, losses)
    assert loss_value(losses) == pytest.approx(value, rel=1e-12)
    assert by_blocks(parameters, after) == pytest.approx(kappa, rel=1e-9)
    assert float(after.trace()) > 5 * float(before.trace())


def quadratic(scale: Tensor) -> tuple[list[Tensor], Callable[[], Iterator[Tensor]]]:
    theta = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    return [theta], lambda: iter([(scale * theta**2).sum() / 2])


def test_worst_case_of_a_quadratic_is_a_corner_of_the_box() -> None:
    """f = (x^2 + y^2) / 2 at (3, 4): the worst with no weight moved by more than r of its size is
    both grown by r, (1 + r)^2 * 12.5. With -y^2 it is x grown and y shrunk."""
    parameters, losses = quadratic(torch.ones(2, dtype=torch.float64))
    found = under_worst(parameters, losses, [0.1, 0.2])
    assert found == pytest.approx([1.21 * 12.5, 1.44 * 12.5], rel=1e-9)
    assert torch.equal(parameters[0].detach(), torch.tensor([3.0, 4.0], dtype=torch.float64))
    parameters, losses = quadratic(torch.tensor([1.0, -1.0], dtype=torch.float64))
    (found_here,) = under_worst(parameters, losses, [0.1])
    assert found_here == pytest.approx((9 * 1.21 - 16 * 0.81) / 2, rel=1e-9)


def test_rescaling_layers_leaves_the_worst_case_as_it_is(case: Case) -> None:
    model, parameters, losses = case
    before = under_worst(parameters, losses, [0.01, 0.05])
    with torch.no_grad():
        model[0].weight.mul_(10.0)
        model[2].weight.div_(10.0)
    assert under_worst(parameters, losses, [0.01, 0.05]) == pytest.approx(before, rel=1e-9)


def test_the_worst_case_is_climbed_in_a_full_step_and_half_ones() -> None:
    """A wave with crests at 1.2 and 2, from 1 with r = .4: to 1.4, past the crest, and half a step
    back onto it."""
    theta = torch.ones(1, dtype=torch.float64, requires_grad=True)

    def losses() -> Iterator[Tensor]:
        yield torch.cos(2 * math.pi * (theta - 1.2) / 0.8).sum()

    assert under_worst([theta], losses, [0.4], steps=1) == pytest.approx([0.0], abs=1e-9)
    assert under_worst([theta], losses, [0.4], steps=2) == pytest.approx([1.0])


def test_relative_flatness_of_one_layer_by_hand() -> None:
    """f = |W x|^2 / 2 has H_ss' = x x^T where s = s', so kappa = |W|^2 |x|^2 = 30 * 2."""
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    x = torch.ones(2, dtype=torch.float64)
    losses = lambda: iter([((weights @ x) ** 2).sum() / 2])  # noqa: E731
    estimate = relative_flatness([weights], losses, seeded(), probes=400)
    assert abs(estimate.value - 60) < 4 * estimate.error
    assert estimate.error < 5


def test_the_same_seed_draws_the_same(case: Case) -> None:
    """Whatever else was drawn in between."""
    _, parameters, losses = case

    def drawn() -> list[float]:
        found = [
            top_eigenvalue(parameters, losses, seeded(), steps=1),
            trace(parameters, losses, seeded(), probes=1).value,
            relative_flatness(parameters, losses, seeded(), probes=1).value,
            under_random(parameters, losses, [0.1], seeded(), draws=1)[0].value,
        ]
        torch.rand(3)
        return found

    assert drawn() == drawn()


def test_a_mean_has_its_standard_error() -> None:
    assert curvature._mean([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3)))
    assert curvature._mean([1.0, 2.0]) == pytest.approx((1.5, 0.5))


def test_a_parameter_without_a_part_in_the_loss(case: Case) -> None:
    _, parameters, losses = case
    known = hessian_vector(parameters, losses, parameters)
    slope = gradient(parameters, losses)
    more = [*parameters, torch.ones(2, dtype=torch.float64, requires_grad=True)]
    for few, many in ((known, hessian_vector(more, losses, more)), (slope, gradient(more, losses))):
        assert all(torch.equal(a, b) for a, b in zip(few, many, strict=False))
        assert many[-1].tolist() == [0.0, 0.0]


def test_random_perturbations_of_a_quadratic() -> None:
    """E f(theta + r d) = f(theta) + r^2 |d|^2 / 2 for a = b = 1, as E d = 0 and |d| = 5."""
    parameters, losses = quadratic(torch.ones(2, dtype=torch.float64))
    (estimate,) = under_random(parameters, losses, [0.2], seeded(), draws=800)
    assert estimate.value == pytest.approx(12.5 + 0.04 * 25 / 2, abs=4 * estimate.error)
    direction = relative_direction(parameters, seeded())
    assert float(direction[0].norm()) == pytest.approx(5.0)


def test_weights_come_back_even_when_the_block_raises(case: Case) -> None:
    parameters = case[1]
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(ZeroDivisionError), moved(parameters, parameters, 0.3):
        _ = 1 / 0
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_gradient_and_value_add_up_over_parts(case: Case) -> None:
    _, parameters, losses = case
    whole = torch.stack(list(losses())).sum()
    wanted = torch.autograd.grad(whole, parameters)
    assert all(
        torch.allclose(a, b) for a, b in zip(gradient(parameters, losses), wanted, strict=True)
    )
    assert loss_value(losses) == pytest.approx(float(whole.detach()))


def test_one_probe_has_no_error() -> None:
    parameters, losses = quadratic(torch.ones(2, dtype=torch.float64))
    estimate = trace(parameters, losses, seeded(), probes=1)
    assert estimate.value == pytest.approx(2.0)
    assert math.isnan(estimate.error)
