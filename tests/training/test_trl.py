"""The penalty on TRL's own trainers. Skipped without TRL; `make test-install` installs it."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_llama, write_rows
from torch import Tensor
from torch.nn import functional

from flatgd.errors import UnsupportedError
from flatgd.training import FlatGDConfig, FlatnessMixin

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # TRL's own


@dataclass
class FlatSFTConfig(trl.SFTConfig, FlatGDConfig): ...


@dataclass
class FlatDPOConfig(trl.DPOConfig, FlatGDConfig): ...


@dataclass
class FlatKTOConfig(trl.KTOConfig, FlatGDConfig): ...


class FlatSFT(FlatnessMixin, trl.SFTTrainer): ...


class FlatDPO(FlatnessMixin, trl.DPOTrainer): ...


class FlatKTO(FlatnessMixin, trl.KTOTrainer): ...


TEXTS = [
    ("how are you?", "fine, thanks.", "go away."),
    ("tea?", "yes, please!", "shoo, you goose."),
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": p, "completion": c} for p, c, _ in TEXTS * 4],
    "dpo": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in TEXTS * 4],
    "kto": [
        {"prompt": p, "completion": text, "label": label}
        for p, c, r in TEXTS * 2
        for text, label in ((c, True), (r, False))
    ],
}
KINDS: dict[str, tuple[Any, Any, Any, Any]] = {
    "sft": (trl.SFTTrainer, trl.SFTConfig, FlatSFT, FlatSFTConfig),
    "dpo": (trl.DPOTrainer, trl.DPOConfig, FlatDPO, FlatDPOConfig),
    "kto": (trl.KTOTrainer, trl.KTOConfig, FlatKTO, FlatKTOConfig),
}


def trainer(kind: str, folder: Path, is_flat: bool, **options: Any) -> Any:
    """A trainer of two rows a batch on a tiny Llama, in float64, with plain SGD."""
    plain, plain_config, flat, flat_config = KINDS[kind]
    common = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "bf16": False,
        "disable_tqdm": True,
        **options,
    }
    kinds = (flat, flat_config) if is_flat else (plain, plain_config)
    return kinds[0](
        model=tiny_llama().double(),
        args=kinds[1](**common),
        train_dataset=datasets.Dataset.from_list(ROWS[kind]),
        processing_class=byte_tokenizer(),
        **({} if kind == "sft" else {"ref_model": tiny_llama(1).double()}),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_penalty_it_is_trls_own_training(tmp_path: Path, kind: str) -> None:
    plain = trainer(kind, tmp_path / "plain", False)
    flat = trainer(kind, tmp_path / "flat", True, flatness_weight=0.0)
    for one in (plain, flat):
        one.train()
    losses = [
        [row["loss"] for row in one.state.log_history if "loss" in row] for one in (plain, flat)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # logged with few digits
    for ours, theirs in zip(flat.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def log_probability(model: Any, ids: Tensor, attention: Tensor, mask: Tensor) -> Tensor:
    """Of the completion of each row, from the logits."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    scores = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (scores * mask[:, 1:]).sum(-1)


def twin(kind: str, model: Any, reference: Any, batch: dict[str, Tensor]) -> Tensor:
    """The loss written out, with a second derivative."""
    ids, attention = batch["input_ids"], batch["attention_mask"]
    if kind == "sft":
        logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())
    mask, beta = batch["completion_mask"], 0.1
    ratio = log_probability(model, ids, attention, mask)
    ratio = ratio - log_probability(reference, ids, attention, mask).detach()
    if kind == "dpo":
        chosen, rejected = ratio.chunk(2)
        return -functional.logsigmoid(beta * (chosen - rejected)).mean()
    other = [batch[f"KL_{name}"] for name in ("input_ids", "attention_mask", "completion_mask")]
    kl = log_probability(model, *other) - log_probability(reference, *other)
    level = kl.mean().detach().clamp(min=0)
    is_wanted = batch["label"].bool()
    wanted = 1 - torch.sigmoid(beta * (ratio[is_wanted] - level))
    unwanted = 1 - torch.sigmoid(beta * (level - ratio[~is_wanted]))
    return torch.cat([wanted, unwanted]).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_penaltys_gradient_is_that_of_double_backward(tmp_path: Path, kind: str) -> None:
    weight = 0.3
    # TRL's fused head computes logits in float32, so that rho cannot be small
    options = {"flatness_weight": weight, "flatness_method": "finite_difference", "rho": 3e-3}
    flat = trainer(kind, tmp_path, True, difference="central", **options)
    batch = next(iter(flat.get_train_dataloader()))
    flat.create_optimizer_and_scheduler(3)
    flat.training_step(flat.model, dict(batch))
    model = tiny_llama().double()
    model.set_attn_implementation("eager")  # the fused kernel has no second derivative
    loss = twin(kind, model, tiny_llama(1).double(), batch)
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    objective = loss + weight * sum(part.square().sum() for part in gradient)
    wanted = torch.autograd.grad(objective, list(model.parameters()))
    ours = torch.cat([parameter.grad.flatten() for parameter in flat.model.parameters()])
    expected = torch.cat([part.flatten() for part in wanted])
    plain = torch.cat([part.detach().flatten() for part in gradient])
    penalty = (expected - plain).norm()
    assert penalty > 0.05 * plain.norm()  # there is something to get wrong
    assert (ours - expected).norm() < 2e-3 * penalty


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_a_batch_that_must_stay_whole_is_not_cut(tmp_path: Path, kind: str) -> None:
    flat = trainer(kind, tmp_path, True, flatness_weight=0.1, micro_batch_size=1)
    with pytest.raises(UnsupportedError, match="is of the whole batch"):
        flat.train()


@pytest.mark.parametrize("option", ["packing", "padding_free"])
def test_packed_rows_are_refused_by_name(tmp_path: Path, option: str) -> None:
    with pytest.raises(
        (UnsupportedError, ValueError, ImportError), match=r"packing=False|flash|padding"
    ):
        trainer("sft", tmp_path, True, flatness_weight=0.1, **{option: True}).train()


PAGE = (Path(__file__).parents[2] / "docs/trl.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
FILES = {
    "safe.jsonl": ROWS["sft"],
    "pairs.jsonl": ROWS["dpo"],
    "replies.jsonl": ROWS["kto"],
}


@pytest.mark.parametrize("code", EXAMPLES, ids=["trainer", "sft", "dpo", "kto"])
def test_the_examples_of_the_docs_run(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, rows in FILES.items():
        write_rows(tmp_path / name, rows)
    tiny_llama().save_pretrained("model")
    byte_tokenizer().save_pretrained("model")
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in code
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path / "model"))
    monkeypatch.setitem(sys.modules, "page", module := ModuleType("page"))  # for its dataclasses
    exec(compile(code, "docs/trl.md", "exec"), module.__dict__)
    assert list(tmp_path.glob("flat*/model.safetensors"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["auto", "lookahead"])
def test_in_bfloat16(tmp_path: Path, kind: str, method: str) -> None:
    """TRL's chunked loss has no second derivative, so `auto` falls back to finite differences."""
    options = {"bf16": True, "flatness_method": method, "penalty_warmup": 0.0, "max_steps": 4}
    flat = trainer(kind, tmp_path, True, **options)
    flat.train()
    logged = [row for row in flat.state.log_history if "gradient_evaluations" in row]
    assert len(logged) == 4
    assert flat.flatness_method == ("finite_difference" if method == "auto" else method)
    if method == "lookahead":
        assert logged[-1]["gradient_evaluations"] == 1
        assert logged[-1]["flatness_weight"] > 0
