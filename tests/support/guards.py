"""A tiny guard."""

from pathlib import Path
from typing import Any

import torch
from conftest import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from flatgd.config.judge import JudgeSettings

LONG = 4096  # positions


def guard(folder: Path, chat_template: str | None, **fields: Any) -> JudgeSettings:
    """A tiny guard with that chat template, in `folder`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=LONG, bos_token_id=1, eos_token_id=2,
        initializer_range=0.5,
    )  # fmt: skip
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length, tokenizer.chat_template = LONG, chat_template
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return JudgeSettings(kind="guard", model=str(folder), max_tokens=LONG, **fields)
