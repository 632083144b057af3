"""The memory estimate of `flatgd check` compared with the memory that a training uses.

    python -m benchmarks.estimate

Trains random models of 15 to 20 million weights for two steps, each in its own process. On the CPU
the resident memory of the process counts. Also compares the activation memory of finite differences
and of the exact penalty. Exits with 1 if an estimate is off by more than 15 %, or if finite
differences need too much.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BlenderbotConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.table import Target, conclude, machine, options
from flatgd import FlatGD, FlatGDConfig, FlatGDTrainer
from flatgd.dialogue import Dialogue, before
from flatgd.models.adapters import with_adapter
from flatgd.pipeline.estimates import of_method
from flatgd.runtime.memory_meter import peak_memory

VOCABULARY, HISTORY, REPLY = 8000, 96, 48
SHAPES: dict[str, Any] = {
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "blenderbot": BlenderbotConfig(
        vocab_size=VOCABULARY,
        d_model=384,
        encoder_layers=2,
        decoder_layers=6,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        dropout=0.0,
    ),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "safety_loss": ("llama", {"flatness_weight": 0.0}),
    "finite_difference": ("llama", {}),
    "finite_difference, blenderbot": ("blenderbot", {}),
    "fast": ("llama", {"flatness_method": "fast", "micro_batch_size": 16}),
    "exact": ("llama", {"flatness_method": "exact"}),
    "checkpointing": ("llama", {"activation_checkpointing": True, "micro_batch_size": 16}),
    "lora": ("llama", {"lora_rank": 8, "micro_batch_size": 16}),
}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer that knows one word."""
    core = Tokenizer(WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="a"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def measure(case: str, folder: Path) -> dict[str, float]:
    """Megabytes: estimated, measured, and measured without weights, gradients and moments."""
    shape, fields = CASES[case]
    shape_config = SHAPES[shape]
    config = FlatGDConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=16,
        penalty_warmup=0.0,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        max_history_tokens=HISTORY,
        max_reply_tokens=REPLY,
        **{"micro_batch_size": 8, **fields},
    )
    guess = of_method(config, FlatGD, shape_config, shape_config, 1, "ddp")
    fixed = (guess.weights + guess.gradients + guess.optimizer) / 2**20
    many = " ".join(["a"] * 200)
    rows = [Dialogue(before([many]), many, n % 2 == 0, "rows", str(n)) for n in range(32)]
    kind = AutoModelForSeq2SeqLM if shape_config.is_encoder_decoder else AutoModelForCausalLM
    with peak_memory() as peak:
        policy = kind.from_config(shape_config)
        experts = [kind.from_config(shape_config) for _ in range(2)]
        trainer = FlatGDTrainer(
            with_adapter(policy, config) if config.lora_rank else policy,
            config,
            train_dataset=rows,
            processing_class=words(),
            method=FlatGD(*experts),
        )
        trainer.train()
    taken = peak.megabytes or float("nan")
    return {"guess": guess.total / 2**20, "taken": taken, "activations": taken - fixed}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(given.one, Path(folder))))
        return 0
    print(machine())
    targets, activations = [], {}
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.estimate", "--one", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{case:<32}{found['guess']:8,.0f} MB estimated{found['taken']:8,.0f} MB used")
        targets.append(Target(case, abs(found["guess"] / found["taken"] - 1), 0.15))
        activations[case] = found["activations"]
    for case in ("finite_difference", "exact"):
        print(f"{case}: {activations[case]:,.0f} MB of activations")
    ratio = activations["finite_difference"] / activations["exact"]
    return conclude([*targets, Target("activations over exact's", ratio, 0.6)])


if __name__ == "__main__":
    sys.exit(main())
