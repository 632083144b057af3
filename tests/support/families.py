"""A tiny random model of every supported family, with a tokenizer of the family's own class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import byte_tokenizer
from shapes import GEMMA
from tokenizers import pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    BlenderbotSmallConfig,
    BlenderbotSmallForConditionalGeneration,
    BlenderbotSmallTokenizer,
    BlenderbotTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
SEQ2SEQ = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 128,
    "init_std": 0.3,
    "dropout": 0.0,
}
DECODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}


def byte_vocab(*specials: str) -> dict[str, int]:
    return {token: place for place, token in enumerate([*specials, *BYTES])}


def blenderbot() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As published: its <mask> lies beyond the model's vocabulary."""
    vocab = byte_vocab("<pad>", "<s>", "</s>", "<unk>")
    tokenizer = BlenderbotTokenizer(vocab=vocab, merges=[])
    config = BlenderbotConfig(vocab_size=len(vocab), scale_embedding=False, **SEQ2SEQ)
    return BlenderbotForConditionalGeneration(config), tokenizer


def blenderbot_small(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Its tokenizer reads vocab.json and merges.txt, and lower-cases."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*(f"{c}@@" for c in letters), *letters]
    specials = ["__null__", "__start__", "__end__", "__unk__", "__newln__"]
    vocab = {token: place for place, token in enumerate([*specials, *pieces])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\nzz zz\n")
    tokenizer = BlenderbotSmallTokenizer(folder / "vocab.json", folder / "merges.txt")
    config = BlenderbotSmallConfig(vocab_size=len(tokenizer), scale_embedding=False, **SEQ2SEQ)
    return BlenderbotSmallForConditionalGeneration(config), tokenizer


def bart() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = BartTokenizer(
        vocab=byte_vocab("<s>", "<pad>", "</s>", "<unk>", "<mask>"), merges=[]
    )
    config = BartConfig(vocab_size=len(tokenizer), forced_bos_token_id=0, **SEQ2SEQ)
    return BartForConditionalGeneration(config), tokenizer


def t5() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    pieces = ["▁", *(chr(code) for code in range(33, 127))]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    tokenizer = T5Tokenizer(vocab=vocab, extra_ids=0)
    config = T5Config(
        vocab_size=len(tokenizer) + 5,  # padded, as the published ones are
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config), tokenizer


def gpt2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """No padding token and no beginning: DialoGPT's shape."""
    tokenizer = GPT2Tokenizer(vocab=byte_vocab("<|endoftext|>"), merges=[])
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=256,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config), tokenizer


def with_beginning() -> PreTrainedTokenizerFast:
    """Llama's way: <s> before a text, nothing after it."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def llama() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = with_beginning()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **DECODER)), tokenizer


def mistral() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = with_beginning()
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return MistralForCausalLM(MistralConfig(vocab_size=len(tokenizer), **ids, **DECODER)), tokenizer


def chatml_tokenizer() -> PreTrainedTokenizerBase:
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        vocab=byte_vocab(*names), merges=[], eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def qwen2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = chatml_tokenizer()
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + 7, **DECODER)), tokenizer


def qwen3() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = chatml_tokenizer()
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), **DECODER)), tokenizer


def decoder_only(kind: str, **fields: Any) -> Callable:
    """Any other decoder-only model: told by its config alone, with Gemma 3's chat template."""

    def build() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        tokenizer = chatml_tokenizer()
        tokenizer.chat_template = GEMMA.replace("|start|", "|im_start|").replace(
            "|end|", "|im_end|"
        )
        tokenizer.bos_token = "<|endoftext|>"
        ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
        config = AutoConfig.for_model(
            kind, vocab_size=len(tokenizer), **ids, **{**DECODER, **fields}
        )
        return AutoModelForCausalLM.from_config(config), tokenizer

    return build


FAMILIES: dict[str, Callable] = {
    "blenderbot": blenderbot,
    "blenderbot-small": blenderbot_small,
    "bart": bart,
    "t5": t5,
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma3_text": decoder_only("gemma3_text", sliding_window=16),
    "gemma2": decoder_only("gemma2", sliding_window=16),
    "phi3": decoder_only("phi3"),
    "olmo2": decoder_only("olmo2"),
    "granite": decoder_only("granite"),
}


# With states that a cache cannot repeat or drop row by row; not part of the whole jobs
RECURRENT: dict[str, Callable] = {
    "mamba": decoder_only("mamba", state_size=4),
    "falcon_h1": decoder_only(
        "falcon_h1", mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
}


def save_family(name: str, folder: Path, seed: int = 0) -> Path:
    """A model folder as on the hub."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    build = {**FAMILIES, **RECURRENT}[name]
    model, tokenizer = build(folder) if name == "blenderbot-small" else build()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if name == "blenderbot":  # the published ones have no tokenizer.json: the class builds it
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(tokenizer._vocab))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder
