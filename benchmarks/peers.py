"""The cost of a training step beside TRL's KTO and DPO, on one chat model and the same rows.

    python -m benchmarks.peers FOLDER [--rows 16] [--repeats 3] [--methods kto flatgd ...]

FOLDER holds a decoder-only chat model. KTO and DPO are TRL's own trainers, so run it with a Python
that has both flatgd and TRL (`pip install trl`). Without TRL they are named as left out.

All methods get the same rows, half of them safe: the dialogue that ships with flatgd, histories cut
to 128 tokens and replies to 40. A batch is computed at once; with --halves in two parts, by
flatgd's micro_batch_size and TRL's gradient accumulation. flatgd sorts rows by length first, so
that parts have less padding. Weights are float32 (or computed in bfloat16: --bf16), all of them are
trained (or an adapter: --lora), with AdamW. KTO takes rows and labels. DPO takes half as many
pairs: a safe row's history and reply, and the toxic reply of the next row, as only the cost is
measured.

TRL keeps its defaults, except for activation checkpointing and bfloat16, which it turns on by
itself. What it then does in a step:

    kto   the policy's gradient; and without gradient the policy on each history with another row's
          reply, and the reference on both; in all, four forward passes and one backward pass
    dpo   the policy's gradient, and the reference without gradient

Its reference is a second copy of the model, or with --lora the base below the adapter. The rows
"precomputed" have TRL's option precompute_ref_log_probs, "checkpointing" is TRL's default. Away
from a GPU, TRL computes logits of histories too. flatgd's experts are two more models, or with
--lora two more adapters, moved at random; "cached" keeps their states on disk, written before the
first step.

Each measurement is a process of its own, and methods take turns. Seconds are between Trainer's
step-begin and step-end, so they hold forward, backward, clipping and AdamW: the median of the last
three steps. The first ones have checks, and measure lookahead's distance. `fast` measures its
lambda at every tenth step, and `lookahead` refreshes its mean at every sixteenth; neither is among
them. Memory is the peak above what the process had after its imports; on a GPU, that of torch's
allocator. Exits with 1 if a target is missed.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import torch
from transformers import TrainerCallback

from benchmarks.table import DEMO, Target, conclude, machine, options
from flatgd import FlatGDConfig, FlatGDTrainer, load_model, load_tokenizer, methods
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.dialogue import Dialogue
from flatgd.models.adapters import share_weights, with_adapter
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import Example
from flatgd.runtime.memory_meter import peak_memory

HISTORY, REPLY, STEPS, RANK = 128, 40, 6, 16
SETTLING = 3  # steps more at the beginning, in which lookahead may still measure its distance
CACHED = {"expert_cache": "states"}
FINITE = {"flatness_method": "finite_difference"}
AHEAD = {"flatness_method": "lookahead"}
EIGHTH = {"penalty_fraction": 0.125, "penalty_momentum": 0.9}
# a method, and fields of FlatGDConfig
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Clean", {}),
    "safety_loss": ("SafetyLoss", {}),
    "safety_loss, cached": ("SafetyLoss", CACHED),
    "flatgd": ("FlatGD", FINITE),
    "flatgd, fast, cached": ("FlatGD", {"flatness_method": "fast", **CACHED}),
    "flatgd, an eighth, cached": ("FlatGD", {**FINITE, **EIGHTH, **CACHED}),
    "flatgd, lookahead": ("FlatGD", AHEAD),
    "flatgd, lookahead, cached": ("FlatGD", {**AHEAD, **CACHED}),
}
# one of TRL's trainers, and fields of its config
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "kto": ("KTO", {}),
    "kto, precomputed": ("KTO", {"precompute_ref_log_probs": True}),
    "kto, checkpointing": ("KTO", {"gradient_checkpointing": True}),
    "dpo": ("DPO", {}),
}
HALF_OF_KTO, THIRD_OF_KTO = 0.5, 0.35
Cost = dict[str, float]


class Clock(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now() - self.begun)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def dialogues(count: int) -> list[Dialogue]:
    """Safe and toxic rows in turn."""
    found = load_diasafety(DEMO / "data/diasafety", "train")
    kinds = [cycle([row for row in found if row.is_safe is kind]) for kind in (True, False)]
    return list(islice((row for pair in zip(*kinds, strict=False) for row in pair), count))


def rows_of(given: argparse.Namespace) -> list[Dialogue]:
    """The rows of all steps; those of the last STEPS steps are the same for each method."""
    found = dialogues(STEPS * given.rows)
    return found[: given.settling * given.rows] + found


def common(folder: str, given: argparse.Namespace) -> dict[str, Any]:
    """Settings that TRL's trainers and flatgd's share."""
    return {
        "output_dir": folder,
        "max_steps": given.settling + STEPS,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "bf16": given.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def adapter_config(folder: str) -> FlatGDConfig:
    return FlatGDConfig(folder, lora_rank=RANK, use_cpu=not torch.cuda.is_available())


def moved(expert: Any, seed: int) -> Any:
    """An expert that differs from the policy, else the penalty is zero and costs less."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in expert.parameters() if p.requires_grad):
            parameter.add_(torch.randn_like(parameter), alpha=1e-3)
    return expert


def ours(name: str, given: argparse.Namespace, folder: str) -> tuple[Any, float]:
    """flatgd's trainer, and the tokens of its last STEPS steps."""
    kind, fields = OURS[name]
    fields = {k: f"{folder}/{v}" if k == "expert_cache" else v for k, v in fields.items()}
    config = FlatGDConfig(
        **common(folder, given),
        per_device_train_batch_size=given.rows,
        micro_batch_size=given.rows // (1 + given.halves),
        max_history_tokens=HISTORY,
        max_reply_tokens=REPLY,
        penalty_warmup=0.0,
        lora_rank=RANK if given.lora else 0,
        **fields,
    )
    model = load_model(given.folder)
    method = getattr(methods, kind)

    def expert(seed: int) -> Any:
        if given.lora:
            shared: Any = share_weights(model)
            return moved(with_adapter(shared, config), seed)
        return moved(load_model(given.folder), seed)

    made = method(*(expert(seed) for seed in range(len(method.needs))))
    trainer = FlatGDTrainer(
        with_adapter(model, config) if given.lora else model,
        config,
        train_dataset=rows_of(given),
        processing_class=load_tokenizer(given.folder),
        method=made,
    )
    first = given.settling * given.rows
    return trainer, float(sum(sum(lengths[first:]) for lengths in trainer.examples.rows.lengths()))


def kto_rows(texts: Sequence[tuple[str, str, bool]]) -> list[dict[str, Any]]:
    return [{"prompt": p, "completion": c, "label": label} for p, c, label in texts]


def dpo_rows(texts: Sequence[tuple[str, str, bool]]) -> list[dict[str, Any]]:
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return [{"prompt": p, "chosen": c, "rejected": other} for (p, c, _), (_, other, _) in pairs]


def theirs(name: str, given: argparse.Namespace, folder: str) -> tuple[Any, float]:
    """TRL's trainer, and the tokens of all its rows."""
    trl, datasets = importlib.import_module("trl"), importlib.import_module("datasets")
    kind, fields = PEERS[name]
    model, tokenizer = load_model(given.folder), load_tokenizer(given.folder)
    form = format_for(model.config, tokenizer, HISTORY, REPLY)

    def text(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    def texts(one: Example) -> tuple[str, str, bool]:
        return text(one.history_ids), text(one.reply_ids), one.is_safe

    rows = [texts(one) for one in form.encode_all(rows_of(given))]
    made = kto_rows(rows) if kind == "KTO" else dpo_rows(rows)
    settings = {
        **common(folder, given),
        "per_device_train_batch_size": given.rows * len(made) // len(rows) // (1 + given.halves),
        "gradient_accumulation_steps": 1 + given.halves,
        "max_length": HISTORY + REPLY + 2,
        "gradient_checkpointing": False,
        **fields,
    }
    trainer = getattr(trl, f"{kind}Trainer")(
        with_adapter(model, adapter_config(folder)) if given.lora else model,
        args=getattr(trl, f"{kind}Config")(**settings),
        train_dataset=datasets.Dataset.from_list(made),
        processing_class=tokenizer,
    )
    seen = trainer.train_dataset
    replies = [
        c for c in ("completion_ids", "chosen_ids", "rejected_ids") if c in seen.column_names
    ]
    histories = len(replies) * sum(map(len, seen["prompt_ids"]))
    return trainer, float(histories + sum(len(ids) for name in replies for ids in seen[name]))


def measure(name: str, given: argparse.Namespace) -> Cost:
    """Seconds, megabytes and tokens of a step, in this process."""
    if name in PEERS:  # before memory is measured, as TRL imports its trainers when they are named
        trl = importlib.import_module("trl")
        _ = getattr(trl, f"{PEERS[name][0]}Trainer")
    clock = Clock()
    given.settling = SETTLING if "lookahead" in name else 0
    with tempfile.TemporaryDirectory() as folder, peak_memory() as peak:
        trainer, tokens = (theirs if name in PEERS else ours)(name, given, folder)
        trainer.add_callback(clock)
        trainer.train()
    return {
        "seconds": statistics.median(clock.seconds[-3:]),
        "megabytes": peak.megabytes or float("nan"),
        "tokens": tokens / STEPS,
    }


def in_process(name: str) -> Cost:
    command = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:], "--one", name]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: Cost = json.loads(done.stdout.splitlines()[-1])
    return found


def targets_of(found: dict[str, Cost]) -> list[Target]:
    """flatgd, and its fastest way, by the time of KTO."""
    if "kto" not in found:
        return []
    ratios = {
        name: found[name]["seconds"] / found["kto"]["seconds"]
        for name, (kind, _) in OURS.items()
        if kind == "FlatGD" and name in found
    }
    targets = []
    if "flatgd" in ratios:
        targets.append(Target("flatgd / kto", ratios["flatgd"], HALF_OF_KTO))
    if ratios:
        fastest = min(ratios, key=lambda name: ratios[name])
        targets.append(Target(f"{fastest} / kto", ratios[fastest], THIRD_OF_KTO))
    return targets


def arguments() -> argparse.Namespace:
    names = [*PEERS, *OURS]
    parser = options(__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch, an even number")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each method")
    parser.add_argument("--methods", nargs="+", choices=names, help="without it, all")
    parser.add_argument("--halves", action="store_true", help="compute a batch in two parts")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--lora", action="store_true", help=f"train an adapter of rank {RANK}")
    parser.add_argument("--one", choices=names, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rows < 4 or given.rows % 2:
        parser.error(f"--rows: an even number of at least 4, got {given.rows}")
    missing = [name for name in given.methods or [] if name in PEERS]
    if missing and importlib.util.find_spec("trl") is None:
        parser.error(
            f"{', '.join(missing)}: {sys.executable} has no TRL; install it there (pip install "
            "trl), or leave them out of --methods"
        )
    return given


def main() -> int:
    given = arguments()
    if given.one:
        print(json.dumps(measure(given.one, given)))
        return 0
    print(machine(), flush=True)
    chosen = given.methods or [*PEERS, *OURS]
    if importlib.util.find_spec("trl") is None:
        print(f"left out, because TRL is not installed: {', '.join(PEERS)}")
        chosen = [name for name in chosen if name not in PEERS]
    else:
        print(f"TRL {importlib.import_module('trl').__version__}")
    runs: dict[str, list[Cost]] = {name: [] for name in chosen}
    for turn in range(given.repeats):
        for name in chosen:
            runs[name].append(in_process(name))
            seconds, megabytes = runs[name][-1]["seconds"], runs[name][-1]["megabytes"]
            print(f"round {turn + 1}: {name:<28}{seconds:8.2f} s{megabytes:10,.0f} MB", flush=True)
    found = {
        name: {key: statistics.median(run[key] for run in of_one) for key in of_one[0]}
        for name, of_one in runs.items()
    }
    kto = found["kto"]["seconds"] if "kto" in found else None
    print(f"\n{'a step':<28}{'seconds':>10}{'of KTO':>10}{'peak MB':>10}{'tokens':>10}")
    for name, cost in found.items():
        ratio = f"{cost['seconds'] / kto:.2f}" if kto else "-"
        cells = f"{cost['seconds']:10.2f}{ratio:>10}{cost['megabytes']:10,.0f}"
        print(f"{name:<28}{cells}{cost['tokens']:10,.0f}")
    targets = targets_of(found)
    return conclude(targets) if targets else 0


if __name__ == "__main__":
    sys.exit(main())
