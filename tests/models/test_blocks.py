"""Which trained weights `penalty_layers` covers."""

from typing import Any

import pytest
from conftest import tiny_blenderbot, tiny_llama
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from flatgd.errors import UnsupportedError
from flatgd.models.blocks import covered


def names(model: Any, layers: str | int) -> list[str]:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    places = covered(model, [p for _, p in trained], layers)
    return [trained[place][0] for place in places or []]


def tiny_t5() -> T5ForConditionalGeneration:
    """Two decoder blocks, each with a list of three parts of its own."""
    config = T5Config(
        vocab_size=50,
        d_model=8,
        d_ff=16,
        d_kv=4,
        num_heads=2,
        num_layers=4,
        num_decoder_layers=2,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def test_all_is_no_choice() -> None:
    model = tiny_llama()
    assert covered(model, list(model.parameters()), "all") is None


@pytest.mark.parametrize("make", [tiny_llama, tiny_blenderbot, tiny_t5])
def test_blocks_are_all_but_embeddings_and_head(make: Any) -> None:
    model = make()
    left_out = {name for name, _ in model.named_parameters()} - set(names(model, "blocks"))
    assert left_out
    for name in left_out:
        module = model.get_submodule(name.rpartition(".")[0])
        assert isinstance(module, nn.Embedding) or module is model.get_output_embeddings()


def test_top_blocks_are_the_decoders_last() -> None:
    last = {f"decoder.block.1.layer.{n}" for n in range(3)}
    assert {name[:23] for name in names(tiny_t5(), 1)} == last
    assert {n[:15] for n in names(tiny_t5(), 2)} == {"decoder.block.0", "decoder.block.1"}
    assert all(name.startswith("model.decoder.layers.0") for name in names(tiny_blenderbot(), 1))
    with pytest.raises(UnsupportedError, match="decoder has 2 blocks"):
        names(tiny_t5(), 3)


def test_adapters_of_embeddings_are_left_out() -> None:
    targets = ["embed_tokens", "q_proj"]
    model = get_peft_model(tiny_llama(), LoraConfig(target_modules=targets, r=2))
    assert names(model, "blocks")
    assert all("q_proj" in name for name in names(model, "blocks"))
    alone = get_peft_model(tiny_llama(), LoraConfig(target_modules=targets[:1], r=2))
    with pytest.raises(UnsupportedError, match="covers none of the trained weights"):
        names(alone, "blocks")
