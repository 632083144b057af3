"""Losses straight from hidden states: against the definition, in chunks of any size."""

from collections.abc import Callable

import pytest
import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama
from reference import js_by_autograd, relative_error
from torch import Tensor, nn

from flatgd.data.jsonl import dialogues_from_row
from flatgd.flatness import TermWeights
from flatgd.losses.fused import (
    CHUNK,
    MIN_TOKENS,
    Expert,
    Head,
    fused_losses,
    head_log_probs,
    tokens_at_once,
)
from flatgd.methods import FlatGD
from flatgd.methods.base import Totals
from flatgd.models.dialogue_format import format_for
from flatgd.models.heads import (
    HeadOnly,
    at_head,
    has_plain_head,
    head_of,
    reply_log_probs,
    reply_states,
    reply_tokens,
)

N, D, V = 11, 5, 13
WEIGHTS = (3.0, -2.0)


class Case:
    """Random states of policy and experts; three tokens are toxic."""

    def __init__(self, dtype: torch.dtype = torch.float64, bias: bool = True):
        torch.manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64).to(dtype)

        self.states = draw(N, D).requires_grad_()
        self.weight = draw(V, D).requires_grad_()
        self.bias = draw(V).requires_grad_() if bias else None
        self.targets = torch.randint(0, V, (N,))
        self.is_safe = torch.arange(N) >= 3
        self.log_q = [draw(N, V).log_softmax(-1) for _ in WEIGHTS]

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.states, self.weight, self.bias) if t is not None]

    def fused(self, chunk: int | None = None, mix: tuple[float, float] | None = None):  # type: ignore[no-untyped-def]
        experts = [
            Expert(w, lambda part, q=q: q[part]) for w, q in zip(WEIGHTS, self.log_q, strict=True)
        ]
        head = Head(self.weight, self.bias)
        return fused_losses(self.states, head, self.targets, self.is_safe, experts, 0.7, mix, chunk)

    def plain(self) -> tuple[Tensor, Tensor]:
        """Safety and likelihood as they are defined, by autograd alone."""
        logits = self.states @ self.weight.T + (0 if self.bias is None else self.bias)
        log_p = logits.log_softmax(-1)
        safety = sum(
            w * js_by_autograd(log_p, q).sum() for w, q in zip(WEIGHTS, self.log_q, strict=True)
        )
        said = log_p[self.is_safe, self.targets[self.is_safe]]
        return torch.as_tensor(safety), -0.7 * said.sum()


@pytest.mark.parametrize("chunk", [1, 4, 11, 100, None])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_both_gradients_are_those_of_the_definition(
    chunk: int | None, bias: bool
) -> None:
    case = Case(bias=bias)
    found, wanted = case.fused(chunk), case.plain()
    assert found.safety.item() == pytest.approx(wanted[0].item(), rel=1e-13)
    assert found.lm.item() == pytest.approx(wanted[1].item(), rel=1e-13)
    assert float(found.lm_sum) == pytest.approx(wanted[1].item() / 0.7, rel=1e-13)
    for ours, theirs in zip((found.safety, found.lm), wanted, strict=True):
        got = torch.autograd.grad(ours, case.leaves, retain_graph=True)
        assert (
            relative_error(got, torch.autograd.grad(theirs, case.leaves, retain_graph=True)) < 1e-13
        )


@pytest.mark.parametrize("mix", [(1.0, 1.0), (1.0, 0.0), (7.5, 1.0), (-30.0, 1.0)])
def test_a_mix_has_the_mixed_gradient(mix: tuple[float, float]) -> None:
    case = Case()
    found, (safety, lm) = case.fused(4, mix), case.plain()
    wanted = mix[0] * safety + mix[1] * lm
    assert found.safety.item() == pytest.approx(wanted.item(), rel=1e-12)
    assert not found.lm.requires_grad
    got = torch.autograd.grad(found.safety, case.leaves)
    assert relative_error(got, torch.autograd.grad(wanted, case.leaves)) < 1e-12


def test_gradcheck() -> None:
    case = Case()

    def losses(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        case.states, case.weight, case.bias = leaves
        found = case.fused(4)
        return found.safety, found.lm

    assert torch.autograd.gradcheck(losses, case.leaves)


def test_incoming_gradients_scale_and_add_up() -> None:
    case = Case()
    found, (safety, lm) = case.fused(), case.plain()
    got = torch.autograd.grad(2 * found.safety - 3 * found.lm, case.leaves)
    assert relative_error(got, torch.autograd.grad(2 * safety - 3 * lm, case.leaves)) < 1e-13


def test_float32_within_a_millionth() -> None:
    single, double = Case(torch.float32), Case()
    for ours, theirs in zip(single.fused(4)[:2], double.plain(), strict=True):
        got = torch.autograd.grad(ours, single.leaves, retain_graph=True)
        wanted = torch.autograd.grad(theirs, double.leaves, retain_graph=True)
        assert relative_error(got, wanted) < 1e-6


@pytest.mark.parametrize("chunk", [4, None])
def test_states_in_half_precision_on_a_float32_head(chunk: int | None) -> None:
    """As under autocast: sums and the head's gradient stay in float32."""
    half, double = Case(torch.float32), Case()
    half.states = half.states.detach().bfloat16().requires_grad_()
    found = half.fused(chunk)
    assert {found.safety.dtype, found.lm.dtype, found.lm_sum.dtype} == {torch.float32}
    assert found.divergences.dtype == torch.float32
    assert head_log_probs(half.states, Head(half.weight, half.bias)).dtype == torch.float32
    for ours, theirs in zip(found[:2], double.plain(), strict=True):
        got = torch.autograd.grad(ours, half.leaves, retain_graph=True)
        wanted = torch.autograd.grad(theirs, double.leaves, retain_graph=True)
        assert [g.dtype for g in got] == [torch.bfloat16, torch.float32, torch.float32]
        assert relative_error([g.double() for g in got], wanted) < 3e-2
        assert ours.item() == pytest.approx(theirs.item(), rel=2e-2)


def test_autocast_rounds_the_states_as_a_linear_layer_does() -> None:
    """Many models' last norm returns float32. Without autocast nothing is rounded."""
    case, rounded = Case(torch.float32), Case(torch.float32)
    rounded.states = rounded.states.detach().bfloat16().requires_grad_()
    wanted = rounded.fused()
    with torch.autocast("cpu", torch.bfloat16):
        found = case.fused()
    assert (found.safety.item(), found.lm.item()) == (wanted.safety.item(), wanted.lm.item())
    assert found.lm.item() != case.fused().lm.item()
    grads = torch.autograd.grad(found.safety + found.lm, case.leaves)
    exact = torch.autograd.grad(wanted.safety + wanted.lm, rounded.leaves)
    assert [g.dtype for g in grads] == [torch.float32] * 3
    for ours, theirs in zip(grads, exact, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=0)


def test_chunks_fill_what_the_device_has() -> None:
    assert tokens_at_once(torch.empty(1000, 3, device="meta")) == CHUNK["cuda"] // 1000
    assert tokens_at_once(torch.empty(1000, 3)) == max(MIN_TOKENS, CHUNK["cpu"] // 1000)
    assert tokens_at_once(torch.empty(2**28, 1, device="meta")) == MIN_TOKENS


def test_a_frozen_head_gets_no_gradient() -> None:
    case = Case()
    case.weight.requires_grad_(False)
    case.bias = None
    found = case.fused()
    assert found.safety.grad_fn.sums.weight_VD is None  # nor is there room for one
    case.bias = torch.zeros(V, dtype=torch.float64)
    assert case.fused().safety.grad_fn.sums.bias_V is None
    found.safety.backward()
    assert case.states.grad is not None
    assert case.weight.grad is None


def test_no_safe_token_no_likelihood() -> None:
    case = Case()
    case.is_safe = torch.zeros(N, dtype=torch.bool)
    found = case.fused(4)
    assert found.lm.item() == 0.0
    grads = torch.autograd.grad(found.lm, case.leaves)
    assert all(float(g.abs().max()) == 0.0 for g in grads)


def test_second_derivative_is_refused() -> None:
    case = Case()
    (grad,) = torch.autograd.grad(case.fused().safety, [case.states], create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        grad.sum().backward()


def batch_for(model: nn.Module) -> dict[str, Tensor]:
    family = format_for(model.config, byte_tokenizer(), 64, 32)
    rows = [d for row in mild_rows(6, seed=4) for d in dialogues_from_row(row)]
    return family.collate([family.encode(row) for row in rows])


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
@pytest.mark.parametrize("penalise", ["safety_loss", "objective"])
@pytest.mark.parametrize("kept", [2**28, 0])
def test_a_models_terms_fused_and_not(
    make: Callable, penalise: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blenderbot's head is tied to its embeddings and has a bias that is no parameter."""
    monkeypatch.setattr("flatgd.methods.safety_loss.MAX_CACHED_BYTES", kept)
    policy = make(0)
    if hasattr(policy, "final_logits_bias"):
        policy.final_logits_bias.normal_()
    method = FlatGD(make(1), make(2), lm_weight=0.7, penalise=penalise)
    (batch,) = method.prepare([batch_for(policy)])
    targets, is_safe = reply_tokens(batch)
    totals = Totals(float(len(targets)), float(is_safe.sum()))
    parameters = list(policy.parameters())
    assert method.can_fuse(policy, batch)
    plain, fused = method.terms(policy, batch, totals), method.fused(policy, batch, totals)
    assert plain.figures.keys() == fused.figures.keys()
    for name, value in plain.figures.items():
        assert float(fused.figures[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6)
    for ours, theirs in zip(fused.terms, plain.terms, strict=True):
        assert ours.requires_grad == theirs.requires_grad
        if ours.requires_grad:
            got = torch.autograd.grad(ours, parameters, retain_graph=True)
            wanted = torch.autograd.grad(theirs, parameters, retain_graph=True)
            assert relative_error(got, wanted) < 2e-6
    mixed = method.fused(policy, batch, totals, TermWeights(3.0, 1.0)).terms
    wanted = torch.autograd.grad(3.0 * plain.terms.penalised + plain.terms.rest, parameters)
    assert relative_error(torch.autograd.grad(mixed.penalised, parameters), wanted) < 2e-6


def test_a_head_with_an_adapter_is_not_plain() -> None:
    model = tiny_llama()
    batch = batch_for(model)
    assert has_plain_head(model, batch)
    model.lm_head = nn.Sequential(model.lm_head)  # as peft wraps it
    assert not has_plain_head(model, batch)


def test_a_model_that_changes_its_logits_is_not_plain() -> None:
    model = tiny_llama()
    model.register_forward_hook(
        lambda _, args, output: setattr(output, "logits", 5 * output.logits) or output
    )
    assert not has_plain_head(model, batch_for(model))


def test_the_head_is_as_before_after_an_error() -> None:
    model = tiny_llama()
    batch = batch_for(model)
    before = reply_log_probs(model, batch)

    def fail(states: Tensor, head: Head) -> Tensor:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        at_head(model, batch, fail)
    assert torch.equal(reply_log_probs(model, batch), before)


def test_only_the_head_says_the_same() -> None:
    model = tiny_blenderbot()
    model.final_logits_bias.normal_()
    batch = batch_for(model)
    with torch.no_grad():
        states = reply_states(model, batch)
        kept = head_of(HeadOnly(head_of(model)))
        assert torch.allclose(
            head_log_probs(states, kept), reply_log_probs(model, batch), atol=1e-6
        )
    # a view of a file's weights would hold all of it in memory
    assert kept.weight.data_ptr() != head_of(model).weight.data_ptr()
