"""What fits on a card: trainings of models of known shapes, by the estimate of `flatgd check`.

    python -m benchmarks.fits

Nothing is loaded: shapes are those of published models. Rows have a history of 128 tokens and a
reply of 64. A cell is the largest micro-batch of a batch of 64 rows; "-" means that not even one
row fits. Full trainings keep the experts' states on disk; with LoRA the experts are adapters too.
"""

import sys
import tempfile
from typing import Any

from transformers import BlenderbotConfig, LlamaConfig, Qwen3Config

from benchmarks.table import machine, options
from flatgd import FlatGD, FlatGDConfig
from flatgd.pipeline.estimates import CARDS, rows_that_fit
from flatgd.pipeline.training_memory import of_method

SHAPES: dict[str, Any] = {
    "SmolLM2 135M": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
    ),
    "BlenderBot 400M": BlenderbotConfig(
        vocab_size=8008, d_model=1280, encoder_layers=2, decoder_layers=12,
        encoder_attention_heads=32, decoder_attention_heads=32, encoder_ffn_dim=5120,
        decoder_ffn_dim=5120,
    ),
    "Llama 3.2 1B": LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "Qwen3 4B": Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "Llama 3.1 8B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    ),
}  # fmt: skip
FULL = {"expert_cache": "states", "activation_checkpointing": True}
LORA = {"lora_rank": 16, "activation_checkpointing": True}
WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "full, float32": (FULL, 0),
    "full, bf16": ({**FULL, "bf16": True}, 0),
    "LoRA, base in bfloat16": (LORA, 16),
}


def main() -> int:
    import torch

    options(__doc__).parse_args()
    print(machine())
    cards = "".join(f"{card:>5} GB" for card in CARDS)
    print(f"{'':<18}{'':<24}{'one row':>10}{cards}")
    for name, shape in SHAPES.items():
        for way, (fields, rank) in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                config = FlatGDConfig(
                    folder, per_device_train_batch_size=64, use_cpu=True, max_history_tokens=128,
                    max_reply_tokens=64, **fields,
                )  # fmt: skip
            base = torch.bfloat16 if rank else torch.float32

            def total(rows: int, config: Any = config, shape: Any = shape, base: Any = base,
                      rank: int = rank) -> float:  # fmt: skip
                return of_method(
                    config, FlatGD, shape, None, rows=rows, base=base, expert_rank=rank
                ).total

            one, two = total(1), total(2)
            cells = (rows_that_fit(one, two, card, 64) for card in CARDS)
            shown = "".join(f"{rows or '-':>8}" for rows in cells)
            print(f"{name:<18}{way:<24}{one / 2**30:>7.1f} GB{shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
