"""Small things to test on: a tokenizer of bytes, models of a few thousand weights, mild data."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from flatgd.runtime import threads

torch.set_num_threads(1)

SAFE = ["thanks, that is kind.", "i like tea too.", "have a nice day!", "sure, tell me more."]
TOXIC = ["you are a silly goose.", "nobody likes your hat.", "what a daft idea.", "go away, goose."]
OPENERS = [
    "hello there",
    "how is the weather?",
    "do you like tea?",
    "i lost my keys",
    "what is up?",
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: any text, 260 tokens."""
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*specials, *letters])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def tiny_blenderbot(seed: int = 0, dropout: float = 0.0) -> BlenderbotForConditionalGeneration:
    torch.manual_seed(seed)
    config = BlenderbotConfig(
        vocab_size=260,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=128,
        dropout=dropout,
        scale_embedding=False,
        init_std=0.3,
        forced_eos_token_id=None,
    )
    return BlenderbotForConditionalGeneration(config)


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def roberta(folder: Path, labels: list[str], problem: str | None = None) -> Path:
    """A sequence classifier in `folder`."""
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=260,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=0,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        problem_type=problem,
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def mild_rows(count: int, seed: int) -> list[dict]:
    """Rows of the jsonl format, every second one labelled toxic (and mild all the same)."""
    rng = random.Random(seed)
    return [
        {
            "prompt": [rng.choice(OPENERS), f"{rng.choice(OPENERS)} ({seed}.{number})"],
            "completion": rng.choice(SAFE if number % 2 else TOXIC),
            "label": bool(number % 2),
            "conversation": f"c{seed}-{number // 2}",
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True, scope="session")
def alone() -> Iterator[None]:
    """No run warns that other programs keep the cores busy, and none takes time to look."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "warning", lambda: None)
        yield


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny_blenderbot().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def recipe_file(tmp_path: Path, backbone_folder: Path) -> Path:
    """A whole main job that takes seconds."""
    for name, seed in (("policy", 1), ("judge", 2), ("test", 3)):
        write_rows(tmp_path / f"{name}.jsonl", mild_rows(24, seed))
    sections = "\n".join(
        f"  {name}: [{{name: {name}, format: jsonl, path: {name}.jsonl}}]"
        for name in ("policy", "judge", "test")
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"name: tiny\noutput: run\nbackbone: {backbone_folder}\nscorer: {backbone_folder}\n"
        f"data:\n{sections}\n"
        "max_reply_tokens: 32\nmax_history_tokens: 64\n"
        "train: {max_steps: 3, per_device_train_batch_size: 8, learning_rate: 1e-3}\n"
        "generate: {histories: 6, samples: 2, max_new_tokens: 8}\n"
        "report: {resamples: 100}\n"
    )
    return path
