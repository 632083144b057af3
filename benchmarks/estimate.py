"""The memory estimate of `flatgd check` compared with the memory that a training uses.

    python -m benchmarks.estimate                    small random models
    python -m benchmarks.estimate --model FOLDER     every stage of a recipe, with a real model

Trains random models of 15 to 20 million weights for two steps, each in its own process, and
compares the activation memory of finite differences with that of the exact penalty. With a model, a
small recipe runs stage by stage, each in its own process, on the dialogue that ships with flatgd.
On the CPU the resident memory of the process counts, above that after all imports. Exits with 1 if
an estimate is off by more than 15 %, or if finite differences need too much.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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

from benchmarks.table import DEMO, Target, conclude, machine, options
from flatgd import FlatGD, FlatGDConfig, FlatGDTrainer
from flatgd.dialogue import Dialogue, before
from flatgd.models.adapters import with_adapter
from flatgd.pipeline.training_memory import of_method
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


RECIPE = """
name: estimate
output: {output}
backbone: {model}
scorer: {model}
data:
  policy: [{{name: dia, format: diasafety, path: {data}, split: train, share: [0, 0.03]}}]
  judge: [{{name: dia, format: diasafety, path: {data}, split: val}}]
  test: [{{name: dia, format: diasafety, path: {data}, split: test, share: [0, 0.1]}}]
max_history_tokens: 64
max_reply_tokens: 24
train: {{max_steps: 2, per_device_train_batch_size: 16, micro_batch_size: 8, learning_rate: 1.0e-5,
  penalty_warmup: 0, expert_cache: none}}
generate: {{histories: 64, samples: 5, max_new_tokens: 32}}
methods:
  safety_loss: {{}}
  flatgd: {{}}
  cached: {{method: flatgd, expert_cache: states}}
  exact: {{method: flatgd, flatness_method: exact}}
  lora: {{method: flatgd, lora_rank: 16}}
"""
STAGES = ("experts", "safety_loss", "flatgd", "cached", "exact", "lora", "generation", "scoring")


def measure_stage(stage: str, path: str) -> dict[str, float]:
    """Megabytes of one stage of a recipe whose earlier stages are done: estimated and used."""
    from flatgd.config.loading import load_recipe
    from flatgd.pipeline.estimates import lengths_of, memory_of
    from flatgd.pipeline.pipeline import Pipeline

    job = Pipeline(load_recipe(Path(path), []))
    context = job.context
    guess = memory_of(context.plan, lengths_of(context.plan))[stage]
    job.judges.build()
    work = {
        "experts": job.models.experts,
        "generation": lambda: job.evaluation.generate("backbone"),
        "scoring": lambda: job.evaluation.score("backbone"),
    }.get(stage, lambda: job.models.train(stage))
    with peak_memory() as peak:
        work()
    return {"guess": guess.total / 2**20, "taken": peak.megabytes or float("nan")}


def stages_of(model: str, stages: Sequence[str]) -> int:
    """Stages of the recipe with a real model."""
    targets = []
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        data = DEMO / "data/diasafety"
        recipe.write_text(RECIPE.format(output=f"{folder}/run", model=model, data=data))
        for stage in stages:
            found = _in_process("--stage", stage, "--recipe", str(recipe))
            print(
                f"{stage:<32}{found['guess']:8,.0f} MB estimated{found['taken']:8,.0f} MB used",
                flush=True,
            )
            targets.append(Target(stage, abs(found["guess"] / found["taken"] - 1), 0.15))
    return conclude(targets)


def _in_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.estimate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--model", help="a folder with a real model")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, help="with --model; experts first"
    )
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--recipe", help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=list(CASES), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(given.one, Path(folder))))
        return 0
    if given.stage:
        print(json.dumps(measure_stage(given.stage, given.recipe)))
        return 0
    print(machine(), flush=True)
    if given.model:
        return stages_of(str(Path(given.model).resolve()), given.stages)
    targets, activations = [], {}
    for case in CASES:
        found = _in_process("--one", case)
        print(f"{case:<32}{found['guess']:8,.0f} MB estimated{found['taken']:8,.0f} MB used")
        targets.append(Target(case, abs(found["guess"] / found["taken"] - 1), 0.15))
        activations[case] = found["activations"]
    for case in ("finite_difference", "exact"):
        print(f"{case}: {activations[case]:,.0f} MB of activations")
    ratio = activations["finite_difference"] / activations["exact"]
    return conclude([*targets, Target("activations over exact's", ratio, 0.6)])


if __name__ == "__main__":
    sys.exit(main())
