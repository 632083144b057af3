"""Weights that are missing, unexpected or of another shape are refused, never made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import roberta
from families import FAMILIES, save_family
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
)

from flatgd.errors import ModelError
from flatgd.methods import Director
from flatgd.methods.director import FILE, DirectorGuide
from flatgd.models.adapters import load, load_together, role_of, save
from flatgd.models.loading import ADAPTER, base_of, load_as, load_config, load_model

State = dict[str, Tensor]
BERT = BertConfig(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    num_labels=2,
)


def rewrite(folder: Path, change: Callable[[State], State], name: str = "model") -> Path:
    path = folder / f"{name}.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return folder


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if part not in name}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_transformers_saved_loads(tmp_path: Path, family: str) -> None:
    folder = save_family(family, tmp_path / family)
    load_model(folder)
    load_as(AutoModel, str(folder), "body")


@pytest.mark.parametrize("family", ["blenderbot", "bart"])
def test_a_bias_that_its_class_declares_may_be_missing(tmp_path: Path, family: str) -> None:
    load_model(rewrite(save_family(family, tmp_path / family), without("final_logits_bias")))


def test_masks_of_old_checkpoints_are_no_weights(tmp_path: Path) -> None:
    masks = {f"transformer.h.0.attn.{name}": torch.zeros(1) for name in ("bias", "masked_bias")}
    load_model(rewrite(save_family("gpt2", tmp_path / "gpt2"), lambda state: state | masks))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (prefixed("_orig_mod."), r"missing \(.*unexpected \(_orig_mod\..*save the unwrapped model"),
        (without("decoder.layers"), r"26 missing \(model\.decoder\.layers\.0\..*random numbers"),
        (lambda state: {}, r"[45]\d missing .*Save the model again with save_pretrained"),
        (lambda state: state | {"v_head.weight": torch.zeros(1)}, r"1 unexpected \(v_head\.weight"),
    ],
)
def test_an_incomplete_backbone_is_refused(
    tmp_path: Path, change: Callable[[State], State], reason: str
) -> None:
    folder = rewrite(save_family("blenderbot", tmp_path / "backbone"), change)
    with pytest.raises(ModelError, match=reason):
        load_model(folder)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    folder = save_family("llama", tmp_path / "llama")
    rewrite(folder, lambda state: state | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(ModelError, match=r"1 of another shape \(model\.norm\.weight\)"):
        load_model(folder)


def test_a_classifier_needs_its_head(tmp_path: Path) -> None:
    def judge(folder: Path) -> Any:
        return load_as(AutoModelForSequenceClassification, str(folder), "classifier")

    BertForSequenceClassification(BERT).save_pretrained(tmp_path / "whole")
    judge(tmp_path / "whole")
    extra = {"cls.predictions.bias": torch.zeros(32), "bert.embeddings.position_ids": torch.ones(1)}
    judge(rewrite(tmp_path / "whole", lambda state: state | extra))
    rewrite(tmp_path / "whole", without("classifier."))
    BertModel(BERT).save_pretrained(tmp_path / "bare")
    for name in ("whole", "bare"):
        with pytest.raises(ModelError, match=r"2 missing \(classifier\.bias.*must be a trained cl"):
            judge(tmp_path / name)
    labelled = save_family("gpt2", tmp_path / "labelled")
    config = json.loads((labelled / "config.json").read_text())
    config["id2label"] = {"0": "safe", "1": "toxic"}
    (labelled / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"1 missing \(score\.weight\)"):
        judge(labelled)


def test_a_classifier_may_carry_a_pooler_that_it_does_not_use(tmp_path: Path) -> None:
    pooler = {"roberta.pooler.dense.bias": torch.zeros(1)}
    folder = rewrite(roberta(tmp_path, ["safe", "toxic"]), lambda state: state | pooler)
    load_as(AutoModelForSequenceClassification, str(folder), "classifier")
    layer = {"roberta.encoder.layer.7.output.dense.bias": torch.zeros(1)}
    rewrite(folder, lambda state: state | layer)
    with pytest.raises(ModelError, match=r"1 unexpected \(.*layer\.7"):
        load_as(AutoModelForSequenceClassification, str(folder), "classifier")


def test_a_trained_judges_encoder_needs_no_pooler_and_all_else(tmp_path: Path) -> None:
    BertForMaskedLM(BERT).save_pretrained(tmp_path)  # it has no pooler, and a head
    load_as(AutoModel, str(tmp_path), "body")
    rewrite(tmp_path, without("attention.output"))
    with pytest.raises(ModelError, match=r"4 missing \(encoder\.layer\.0\.attention\.output"):
        load_as(AutoModel, str(tmp_path), "body")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    base = save_family("llama", tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    save(get_peft_model(load_model(base), lora), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (prefixed("_orig_mod."), r"4 missing .*4 unexpected"),
        (without("q_proj"), r"2 missing \(base_model\.model\.model\.layers\.0\.self_attn\.q_proj"),
        (lambda state: {}, "4 missing"),
        (
            lambda state: state | {"base_model.model.x.lora_A.weight": torch.zeros(1)},
            r"1 unexpected",
        ),
    ],
)
def test_an_adapter_with_wrong_names_is_refused(
    adapter: Path, change: Callable[[State], State], reason: str
) -> None:
    load(adapter)
    rewrite(adapter, change, "adapter_model")
    with pytest.raises(ModelError, match=f"the adapter's weights do not fit its base: .*{reason}"):
        load(adapter)
    with pytest.raises(ModelError, match=reason):
        load_together({"clean": str(adapter)})


def name_base(adapter: Path, base: Any) -> None:
    config = json.loads((adapter / ADAPTER).read_text())
    (adapter / ADAPTER).write_text(json.dumps(config | {"base_model_name_or_path": base}))


@pytest.mark.parametrize("use", [base_of, load_config, load])
def test_an_adapter_that_leads_back_to_itself_is_refused(adapter: Path, use: Any) -> None:
    name_base(adapter, str(adapter))
    with pytest.raises(ModelError, match=r"leads back to .*base_model_name_or_path"):
        use(str(adapter))
    other = adapter.with_name("other")
    other.mkdir()
    (other / ADAPTER).write_text((adapter / ADAPTER).read_text())
    name_base(adapter, str(other))
    with pytest.raises(ModelError, match="leads back to"):
        use(str(adapter))


@pytest.mark.parametrize("base", [None, 3, ""])
def test_an_adapter_without_a_base_is_refused(adapter: Path, base: Any) -> None:
    name_base(adapter, base)
    with pytest.raises(ModelError, match="names no base"):
        load(adapter)


def test_a_mark_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        role_of(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "holds nothing"),
        ({"bias": torch.zeros(3)}, r"holds bias \[3\]"),
        ({"weight": torch.zeros(3)}, r"holds weight \[3\]"),
    ],
)
def test_directors_second_head_must_be_one(tmp_path: Path, tensors: State, reason: str) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        Director.guide(tmp_path, {})
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(ModelError, match=reason):
        Director.guide(tmp_path, {})


def test_directors_second_head_must_fit_its_model(tmp_path: Path) -> None:
    model = load_model(save_family("llama", tmp_path / "llama"))
    with pytest.raises(
        ModelError, match=r"second head is \[5, 7\], and this model needs \[\d+, 16"
    ):
        DirectorGuide(torch.zeros(5, 7)).processor(model, {})
