"""Every loss against its slow float64 twin, and by hand.

`pytest tests/methods/test_methods.py -k reference -s` prints each loss's largest relative error.
"""

import math
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot
from reference import kl_bits, relative_error
from torch import Tensor

from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.losses import bhattacharyya_distance, kl_divergence
from flatgd.methods import (
    METHODS,
    NPO,
    Click,
    Cringe,
    Director,
    SafetyLoss,
    TaskArithmetic,
    Totals,
    Unlikelihood,
)
from flatgd.methods.click import click
from flatgd.methods.cringe import cringe
from flatgd.methods.director import class_loss
from flatgd.methods.npo import npo
from flatgd.methods.unlikelihood import unlikelihood
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import IGNORE, Batch
from flatgd.training.micro_batches import emptied, split_batch

ROWS = [
    (("hello there",), "thanks, that is kind.", True),
    (("what is up?",), "go away.", False),
    (("do you like tea?", "yes"), "me too!", True),
    (("i lost my keys",), "what a daft idea, goose.", False),
]


def batch_of(model: torch.nn.Module, rows: Any = ROWS) -> Batch:
    family = format_for(model.config, byte_tokenizer())
    return family.collate([family.encode(Dialogue(h, r, s, "t", "c")) for h, r, s in rows])


def totals_of(batch: Batch) -> Totals:
    real, safe = batch["targets"] != IGNORE, batch["is_safe"]
    single = batch.get("pair", torch.full((len(safe),), -1)) < 0
    tokens = real.sum(1) * single
    return Totals(
        float(tokens.sum()),
        float((tokens * safe).sum()),
        float((single & ~safe).sum()),
        float((~single).sum() // 2),
    )


def probabilities(model: torch.nn.Module, batch: Batch) -> list[list[tuple[list[float], int]]]:
    """For each row (distribution, target) of each real token, in float64, one row at a time."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "decoder_input_ids")}
    logits = model.double()(**inputs).logits
    rows = []
    for row, targets in zip(logits, batch["targets"].tolist(), strict=True):
        pairs = zip(row.softmax(-1).tolist(), targets, strict=True)
        rows.append([(p, target) for p, target in pairs if target != IGNORE])
    return rows


def nll(row: list[tuple[list[float], int]]) -> float:
    return -sum(math.log(p[target]) for p, target in row)


def lm_twin(rows: Any, safe: list[bool]) -> float:
    kept = [row for row, is_safe in zip(rows, safe, strict=True) if is_safe]
    return sum(map(nll, kept)) / sum(map(len, kept))


def unlikelihood_twin(method: Unlikelihood, rows: Any, safe: list[bool], _: Any) -> float:
    toxic = [cell for row, is_safe in zip(rows, safe, strict=True) if not is_safe for cell in row]
    unlikely = sum(-math.log(1 - p[target]) for p, target in toxic) / len(toxic)
    return lm_twin(rows, safe) + method.weight * unlikely


def cringe_twin(method: Cringe, rows: Any, safe: list[bool], _: Any) -> float:
    total = 0.0
    for row, is_safe in zip(rows, safe, strict=True):
        for p, target in row:
            best = max(value for token, value in enumerate(p) if token != target)
            contrast = -math.log(best / (best + p[target]))
            total += -math.log(p[target]) if is_safe else method.weight * contrast
    return total / sum(map(len, rows))


def npo_twin(method: NPO, rows: Any, safe: list[bool], reference: Any) -> float:
    values = [
        2 / method.beta * math.log(1 + math.exp(method.beta * (nll(ref) - nll(row))))
        for row, ref, is_safe in zip(rows, reference, safe, strict=True)
        if not is_safe
    ]
    return lm_twin(rows, safe) + method.weight * sum(values) / len(values)


def click_twin(method: Click, rows: Any, safe: list[bool], _: Any) -> float:
    """Rows 0 and 1 are given, 2 and 3 a pair."""
    contrast = max(0.0, method.margin + nll(rows[2]) - nll(rows[3]))
    return lm_twin(rows[:2], safe[:2]) + method.weight * contrast


def safety_twin(divergence: str) -> Any:
    def kl(p: list[float], q: list[float]) -> float:
        return kl_bits(p, q)

    def distance(p: list[float], q: list[float]) -> float:
        if divergence == "bhattacharyya":
            return -math.log2(sum(math.sqrt(a * b) for a, b in zip(p, q, strict=True)))
        return kl(p, q) if divergence == "kl" else kl(q, p)

    def twin(method: SafetyLoss, rows: Any, safe: list[bool], experts: Any) -> float:
        tokens = [cell[0] for row in rows for cell in row]
        means = [
            sum(distance(p, q) for p, q in zip(tokens, [c[0] for r in e for c in r], strict=True))
            / len(tokens)
            for e in experts
        ]
        return lm_twin(rows, safe) + 3 * means[0] - 2 * means[1]

    return twin


def model(seed: int) -> torch.nn.Module:
    return tiny_blenderbot(seed).eval()


CASES: dict[str, Any] = {
    "unlikelihood": (lambda: Unlikelihood(weight=0.7), unlikelihood_twin),
    "cringe": (lambda: Cringe(weight=0.7), cringe_twin),
    "npo": (lambda: NPO(backbone=model(5), weight=0.7, beta=0.3), npo_twin),
    "click": (lambda: Click(weight=0.7, margin=3.0), click_twin),
    **{
        name: (lambda name=name: SafetyLoss(model(5), model(6), divergence=name), safety_twin(name))
        for name in ("kl", "kl_from_expert", "bhattacharyya")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_its_float64_reference(name: str) -> None:
    make, twin = CASES[name]
    method, policy = make(), model(1)
    whole = batch_of(policy)
    if name == "click":
        whole["pair"] = torch.tensor([-1, -1, 0, 0])
    parts = split_batch(whole, 2)  # as in a step: shares of the whole batch's means
    totals = totals_of(whole)
    with torch.no_grad():
        scored = [method.terms(policy, part, totals).terms for part in method.prepare(parts)]
        got = float(sum(float(t.penalised + t.rest) for t in scored))
        rows = probabilities(policy, whole)
        others = [probabilities(other, whole) for other in method.models()]
        given = others[0] if name == "npo" else others
        wanted = twin(method, rows, whole["is_safe"].tolist(), given)
    error = abs(got - wanted) / abs(wanted)
    print(f"{name}: relative error {error:.1e}")
    assert error < 2e-6


@pytest.mark.parametrize("name", CASES)
def test_rows_without_tokens_add_nothing(name: str) -> None:
    """As they stand for rows that only fill up a batch of several processes."""
    policy, method = model(1), CASES[name][0]()
    whole = {**batch_of(policy), "pair": torch.full((len(ROWS),), -1)}
    none = emptied(whole, torch.ones(len(ROWS), dtype=torch.bool))
    (part,) = method.prepare(split_batch(none, None))
    terms = method.terms(policy, part, totals_of(whole)).terms
    loss = terms.penalised + terms.rest
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in policy.parameters())


def test_director_equals_its_float64_reference() -> None:
    """c[y] of each token by a loop over rows, positions and width."""
    policy, method = model(1), Director(weight=0.7)
    method.begin(policy)
    head = policy.director_head.weight
    with torch.no_grad():
        head.normal_(generator=torch.Generator().manual_seed(0))
        batch = batch_of(policy)
        got = float(method.terms(policy, batch, totals_of(batch)).terms.rest)
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "decoder_input_ids")}
        states = policy.model(**inputs).last_hidden_state.double()
        total, tokens = 0.0, 0
        for b, targets in enumerate(batch["targets"].tolist()):
            for t, target in enumerate(targets):
                if target == IGNORE:
                    continue
                c = float((states[b, t] * head[target].double()).sum())
                total += math.log(1 + math.exp(-c if batch["is_safe"][b] else c))
                tokens += 1
        lm = lm_twin(probabilities(policy, batch), batch["is_safe"].tolist())
        wanted = lm + 0.7 * total / tokens
    print(f"director: relative error {abs(got - wanted) / wanted:.1e}")
    assert got == pytest.approx(wanted, rel=2e-6)


def test_unlikelihood_by_hand() -> None:
    """p = (1/4, 3/4). Token 0: -log(1 - 1/4) = log(4/3) = 0.28768; token 1: -log(1/4) = 1.38629.

    d/dp of -log(1 - p) is 1 / (1 - p): 4/3 and 4, times dp/dl = p: 1/3 and 3.
    """
    log_p = torch.tensor([[0.25, 0.75]] * 2, dtype=torch.float64).log().requires_grad_()
    value = unlikelihood(log_p, torch.tensor([0, 1]))
    assert value.tolist() == pytest.approx([math.log(4 / 3), math.log(4)])
    (slope,) = torch.autograd.grad(value.sum(), log_p)
    assert slope.flatten().tolist() == pytest.approx([1 / 3, 0, 0, 3])


def test_unlikelihood_is_finite_where_a_token_is_certain() -> None:
    value = unlikelihood(torch.tensor([[0.0, -torch.inf]]), torch.tensor([0]))
    assert value.item() == pytest.approx(-math.log(1e-5), rel=1e-4)


def test_cringe_by_hand() -> None:
    """p = (1/2, 1/3, 1/6), the toxic token 0: the likeliest other one is 1.

    CR = -log(p1 / (p0 + p1)) = -log((1/3) / (5/6)) = log(5/2) = 0.91629.
    Toxic token 1: against 0, -log((1/2) / (5/6)) = log(5/3) = 0.51083.
    The slope by s- is p- / (p+ + p-), 3/5 and 2/5; by s+ its negative.
    """
    p = torch.tensor([[1 / 2, 1 / 3, 1 / 6]] * 2, dtype=torch.float64)
    log_p = p.log().requires_grad_()
    value = cringe(log_p, torch.tensor([0, 1]), top_k=1)
    assert value.tolist() == pytest.approx([math.log(5 / 2), math.log(5 / 3)])
    (slope,) = torch.autograd.grad(value.sum(), log_p)
    assert slope.flatten().tolist() == pytest.approx([0.6, -0.6, 0, -0.4, 0.4, 0])


def test_cringe_draws_among_the_k_likeliest_others() -> None:
    """Of p = (.1, .6, .2, .1), toxic token 1, k = 2: token 2 with P 2/3, and 0 or 3 with 1/3."""
    p = torch.tensor([[0.11, 0.6, 0.2, 0.09]], dtype=torch.float64).repeat(4000, 1)
    torch.manual_seed(0)
    value = cringe(p.log(), torch.ones(4000, dtype=torch.long), top_k=2)
    against = {2: math.log(0.8 / 0.2), 0: math.log(0.71 / 0.11)}
    counts = [int((value - v).abs().lt(1e-9).sum()) for v in against.values()]
    assert sum(counts) == 4000
    assert counts[0] / 4000 == pytest.approx(0.2 / 0.31, abs=0.03)


def test_npo_by_hand() -> None:
    """At the reference its loss is 2/beta log 2, its slope by the log-likelihood 1; in the limit
    of small beta ascent on the NLL, faded where the reply has become unlikely."""
    ratio = torch.tensor([0.0, -100.0], dtype=torch.float64, requires_grad=True)
    value = npo(ratio, 0.1)
    assert value[0].item() == pytest.approx(20 * math.log(2))
    (slope,) = torch.autograd.grad(value.sum(), ratio)
    assert slope.tolist() == pytest.approx([1.0, 2 / (1 + math.exp(10))])


def test_click_by_hand() -> None:
    """NLL 10 and 12: margin 5 leaves 3; NLL 10 and 30: nothing is left to do."""
    safe, toxic = torch.tensor([10.0, 10.0]), torch.tensor([12.0, 30.0])
    assert click(safe, toxic, 5.0).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("loss", [unlikelihood, lambda p, t: cringe(p, t, 1)])
def test_gradients(loss: Any) -> None:
    logits = torch.randn(4, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 5, 1])
    assert torch.autograd.gradcheck(lambda x: loss(x.log_softmax(-1), targets), logits)


@pytest.mark.parametrize("divergence", [kl_divergence, bhattacharyya_distance])
def test_divergences_twice_differentiable_and_zero_at_home(divergence: Any) -> None:
    logits = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    other = torch.randn(3, 6, dtype=torch.float64).log_softmax(-1)

    def value(x: Tensor) -> Tensor:
        return divergence(x.log_softmax(-1), other)

    assert torch.autograd.gradcheck(value, logits)
    assert torch.autograd.gradgradcheck(value, logits)
    assert divergence(other, other).abs().max() < 1e-14


def test_class_loss_at_no_opinion() -> None:
    assert class_loss(torch.zeros(2), torch.tensor([True, False])).tolist() == pytest.approx(
        [math.log(2)] * 2
    )


def test_task_arithmetic_is_what_it_says() -> None:
    start, toxic, merged = model(1), model(2), model(1)
    TaskArithmetic(start, toxic, strength=0.25).merge(merged)
    named = zip(merged.parameters(), start.parameters(), toxic.parameters(), strict=True)
    with torch.no_grad():
        wanted = [(s.double() - 0.25 * (t.double() - s.double())) for _, s, t in named]
        assert relative_error(list(merged.parameters()), wanted) < 1e-7
    untouched = model(1)
    TaskArithmetic(start, toxic, strength=0.0).merge(untouched)
    assert all(map(torch.equal, untouched.parameters(), start.parameters()))


def test_task_arithmetic_refuses_another_shape() -> None:
    other = tiny_blenderbot(0)
    other.resize_token_embeddings(300)
    with pytest.raises(ModelError, match="the backbone's shape"):
        TaskArithmetic(model(1), other).merge(model(1))


def test_every_system_has_a_name_and_says_what_it_does() -> None:
    for name, kind in METHODS.items():
        assert kind.name == name
        assert kind.summary.endswith(".")
