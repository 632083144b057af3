"""Labelled replies that any judge can learn, and an encoder for a judge to stand on."""

from pathlib import Path

import torch
from conftest import SAFE, TOXIC, byte_tokenizer
from transformers import BertConfig, BertModel

from flatgd.dialogue import Dialogue

ENCODER_WIDTH = 16


def encoder_folder(folder: Path, seed: int = 0) -> Path:
    """A sentence encoder of four layers in `folder`."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=260,
        hidden_size=ENCODER_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        pad_token_id=0,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def judge_rows(count: int, offset: int = 0) -> list[Dialogue]:
    texts = [(t, True) for t in SAFE] + [(t, False) for t in TOXIC]
    return [
        Dialogue((f"line {n}",), f"{texts[n % 8][0]} {n}", texts[n % 8][1], "t", f"c{offset + n}")
        for n in range(count)
    ]
