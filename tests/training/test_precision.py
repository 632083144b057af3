"""Weights in half precision: what is trained is float32, what is frozen may stay as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from training import DESCENT, ROWS, config, largest_difference, own_trainer, trainer

from flatgd import Clean, FlatGDTrainer
from flatgd.errors import UnsupportedError
from flatgd.flatness import penalty

RAISED = "are raised to float32"


def strong(seed: int, precision: torch.dtype = torch.float32) -> nn.Module:
    """A model with a curved loss, whose weights bfloat16 and float16 both hold exactly."""
    model = tiny_llama(seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_((torch.randn(weight.shape) * 0.2).bfloat16())
    return model.to(precision)


def adapted(precision: torch.dtype) -> nn.Module:
    """A base and an adapter, both in that precision."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
    model = get_peft_model(strong(0), lora)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = (torch.randn(weight.shape) * 0.3).bfloat16().float()
    return model.to(precision)


def hessian_product(
    model: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> Tensor:
    """H u of a step, as the penalty's gradient is assembled from it."""
    experts = {"clean_expert": strong(11), "toxic_expert": strong(12)}
    subject = FlatGDTrainer(
        model, config(folder, flatness_weight=1.0, **fields),
        train_dataset=ROWS, processing_class=byte_tokenizer(), **experts,
    )  # fmt: skip
    seen: list[Tensor] = []
    assemble = penalty._assemble

    def watched(g: Any, rest: Any, hessian_u: list[Tensor], *more: Any) -> Any:
        seen.append(torch.cat([part.double().flatten() for part in hessian_u]))
        return assemble(g, rest, hessian_u, *more)

    with monkeypatch.context() as patch:
        patch.setattr(penalty, "_assemble", watched)
        subject.training_step(subject.model, subject.data_collator(subject.examples[:8]))
    return seen[0]


def cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_penalty_of_half_weights_is_that_of_float32(
    tmp_path: Path, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = hessian_product(strong(0), tmp_path, monkeypatch, flatness_method="exact")
    assert cosine(hessian_product(strong(0, precision), tmp_path, monkeypatch), exact) > 0.999


@pytest.mark.parametrize("make", [tiny_blenderbot, tiny_llama])
def test_it_is_reported_once_and_trains_as_float32_weights_do(
    tmp_path: Path, make: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole, half = make(0).bfloat16().float(), make(0).bfloat16()
    tied = half.get_output_embeddings().weight is half.get_input_embeddings().weight
    weights = []
    for name, model in (("a", whole), ("b", half)):
        subject = _clean(tmp_path / name, model)
        subject.train()
        weights.append(dict(model.state_dict()))
    assert {t.dtype for t in [*half.parameters(), *half.buffers()]} == {torch.float32}
    assert largest_difference(*weights) == 0.0
    assert (half.get_output_embeddings().weight is half.get_input_embeddings().weight) == tied
    assert caplog.text.count("weight tensors are in bfloat16 and are raised to float32") == 1


def _clean(folder: Path, model: nn.Module, **given: Any) -> FlatGDTrainer:
    return FlatGDTrainer(
        model, config(folder, **DESCENT), train_dataset=ROWS, processing_class=byte_tokenizer(),
        method=Clean(), **given,
    )  # fmt: skip


def test_a_model_of_both_precisions_computes_in_one(tmp_path: Path) -> None:
    model = tiny_llama()
    model.get_input_embeddings().bfloat16().requires_grad_(False)
    _clean(tmp_path, model).train()
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_tensors_on_one_storage_stay_on_one(tmp_path: Path) -> None:
    model = tiny_llama().bfloat16()
    model.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.data)
    _clean(tmp_path, model)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_an_existing_optimizer_keeps_the_raised_weights(tmp_path: Path) -> None:
    model = tiny_llama().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.lm_head.weight.detach().float().clone()
    subject = _clean(tmp_path, model, optimizers=(optimizer, None))
    subject.train()
    assert {p.dtype for group in optimizer.param_groups for p in group["params"]} == {torch.float32}
    assert not torch.equal(model.lm_head.weight, before)


def test_an_adapter_is_raised_alone_and_its_penalty_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its base computes in half precision, so second derivatives are taken, as under autocast."""
    exact = hessian_product(adapted(torch.float32), tmp_path, monkeypatch, flatness_method="exact")
    model = adapted(torch.bfloat16)
    found = hessian_product(model, tmp_path, monkeypatch, rho=None)
    assert cosine(found, exact) > 0.99
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    short = hessian_product(adapted(torch.bfloat16), tmp_path, monkeypatch, rho=3e-4)
    assert cosine(short, exact) < 0.9  # what they are for


def test_on_another_trainer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    subject = own_trainer(tmp_path, lambda: tiny_llama().bfloat16())
    assert {p.dtype for p in subject.model.parameters()} == {torch.float32}
    assert caplog.text.count(RAISED) == 1


def test_another_trainers_model_init_is_raised_each_time(tmp_path: Path) -> None:
    given = own_trainer(tmp_path, tiny_llama)
    subject = type(given)(
        model_init=lambda: tiny_llama().bfloat16(), args=config(tmp_path),
        train_dataset=given.train_dataset, data_collator=given.data_collator,
    )  # fmt: skip
    subject.train()
    assert {p.dtype for p in subject.model.parameters()} == {torch.float32}


def test_frozen_experts_stay_in_half_precision(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experts = {"clean_expert": strong(11, torch.bfloat16), "toxic_expert": strong(12).half()}
    subject = FlatGDTrainer(
        strong(0), config(tmp_path), train_dataset=ROWS, processing_class=byte_tokenizer(),
        **experts,
    )  # fmt: skip
    subject.train()
    assert {p.dtype for p in experts["clean_expert"].parameters()} == {torch.bfloat16}
    assert RAISED not in caplog.text
    assert subject.penalty_settings().rho == 3e-4


def test_accelerates_own_settings_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 from the environment counts as the option does; fp16 is refused. On any Trainer."""
    makes = (
        lambda folder: trainer(folder, rho=None),
        lambda folder: own_trainer(folder, tiny_blenderbot, rho=None),
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for make in makes:
        subject = make(tmp_path)
        subject.state.max_steps = 1
        assert subject.flatness_method == "exact"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    for make in makes:
        with pytest.raises(UnsupportedError, match="mixed precision is fp16"):
            make(tmp_path)
