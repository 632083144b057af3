"""Speed on a real chat model: scoring, sampling, perplexity and training steps.

    python -m benchmarks.real_model FOLDER [--against PATH] [--what score sample ...] [--rounds 2]

FOLDER holds a model, PATH another checkout of flatgd. Both are measured in turns, each in its own
process, on the real dialogue that ships with flatgd. Exits with 1 if a target is missed, which is a
ratio to the other checkout.

    score       the likelihood of 315 replies, each to its own history
    sample      five replies to each of 40 histories
    perplexity  the likelihood of five replies to each of 40 histories
    step        a training step of 32 rows: plain, safety_loss, flatgd; with lora, only an adapter
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

REPLIES, HISTORIES, SAMPLES = 315, 40, 5
HISTORY, REPLY = 128, 40
BATCH = 32
STEPS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Clean", {}),
    "safety_loss": ("SafetyLoss", {}),
    "flatgd": ("FlatGD", {}),
    "flatgd, bf16": ("FlatGD", {"bf16": True}),
    "flatgd, lora": ("FlatGD", {"lora_rank": 16}),
    "flatgd, lora, bf16": ("FlatGD", {"lora_rank": 16, "bf16": True}),
}
LEAST = {"score": 2.0, "sample": 2.0, "perplexity": 2.0}
STAGES = (*LEAST, "step")
MEASURES = (*LEAST, *(f"step: {name}" for name in STEPS))


def rows(part: Any, count: int) -> list[Any]:
    import flatgd
    from flatgd.data.formats.diasafety import load_diasafety

    found = load_diasafety(Path(flatgd.__file__).parent / "demo/data/diasafety", part)
    return list(islice(cycle(found), count))


def speaker(folder: str) -> Any:
    from flatgd import load_model, load_tokenizer
    from flatgd.models.dialogue_format import format_for
    from flatgd.models.speaker import Speaker

    model = load_model(folder)
    return Speaker(model, format_for(model.config, load_tokenizer(folder), HISTORY, REPLY))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def measure_score(folder: str) -> dict[str, float]:
    subject, given = speaker(folder), rows("test", REPLIES)
    subject.score(given[:4])
    seconds, found = timed(lambda: subject.score(given))
    return {"seconds": seconds, "nll": sum(one.nll for one in found)}


def measure_sample(folder: str) -> dict[str, float]:
    from flatgd.config.recipe import Generate

    subject, given = speaker(folder), rows("test", HISTORIES)
    settings = Generate(samples=SAMPLES, max_new_tokens=REPLY)
    subject.generate(given[:1], settings, 0)
    seconds, found = timed(lambda: subject.generate(given, settings, 0))
    return {"seconds": seconds, "tokens": found.tokens}


def measure_perplexity(folder: str) -> dict[str, float]:
    from dataclasses import replace

    subject, found = speaker(folder), rows("test", HISTORIES * SAMPLES)
    given = [
        replace(found[number], reply=found[number * SAMPLES + sample].reply)
        for number in range(HISTORIES)
        for sample in range(SAMPLES)
    ]
    subject.score(given[:5])
    seconds, scores = timed(lambda: subject.score(given))
    return {"seconds": seconds, "nll": sum(one.nll for one in scores)}


def measure_step(folder: str, name: str) -> dict[str, float]:
    """Seconds of a step of one kind: the median of those after the first one, which has checks."""
    import copy

    import flatgd
    from flatgd import FlatGDConfig, FlatGDTrainer, load_model, load_tokenizer
    from flatgd.models.adapters import with_adapter

    kind, fields = STEPS[name]
    model = load_model(folder)
    experts = [copy.deepcopy(model) for _ in range(2)]
    method = getattr(flatgd.methods, kind)
    with tempfile.TemporaryDirectory() as output:
        config = FlatGDConfig(
            output, max_steps=3, per_device_train_batch_size=BATCH, micro_batch_size=8,
            penalty_warmup=0.0, use_cpu=True, disable_tqdm=True, logging_steps=1,
            max_history_tokens=HISTORY, max_reply_tokens=REPLY, learning_rate=1e-5, **fields,
        )  # fmt: skip
        trainer = FlatGDTrainer(
            with_adapter(model, config) if config.lora_rank else model,
            config,
            train_dataset=rows("train", 3 * BATCH),
            processing_class=load_tokenizer(folder),
            method=method(*experts) if method.needs else method(),
        )
        trainer.train()
    seconds = [entry["seconds"] for entry in trainer.state.log_history if "seconds" in entry]
    return {"seconds": statistics.median(seconds[1:])}


def run(folder: str, what: str, tree: Path) -> dict[str, float]:
    """One measurement by one checkout, in a process of its own."""
    command = [sys.executable, __file__, folder, "--one", what]
    environment = os.environ | {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tree, check=False
    )
    if done.returncode:
        raise SystemExit(f"{what} failed in {tree}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def median_of(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(one[key] for one in runs) for key in runs[0]}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--against", type=Path, help="another checkout of flatgd")
    parser.add_argument("--what", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--rounds", type=int, default=2, help="measurements by each checkout")
    parser.add_argument("--one", choices=MEASURES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        stage, _, name = given.one.partition(": ")
        measure: Callable[..., dict[str, float]] = globals()[f"measure_{stage}"]
        print(json.dumps(measure(given.folder, *([name] if name else []))))
        return 0
    from benchmarks.table import Target, conclude, machine

    print(machine(), flush=True)
    folder, targets = str(Path(given.folder).resolve()), []
    trees = {"this": Path(__file__).parent.parent}
    if given.against:
        trees["other"] = given.against.resolve()
    for what in (one for one in MEASURES if one.partition(":")[0] in given.what):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for _ in range(given.rounds):
            for name, tree in trees.items():
                runs[name].append(run(folder, what, tree))
        found = {name: median_of(of_tree) for name, of_tree in runs.items()}
        for key in found["this"]:
            values = "  ".join(f"{name} {one.get(key, 0):,.2f}" for name, one in found.items())
            print(f"{what:<26}{key:<9}{values}", flush=True)
        if given.against and what in LEAST:
            ratio = found["other"]["seconds"] / found["this"]["seconds"]
            targets.append(Target(f"{what}: times as fast", ratio, LEAST[what], at_least=True))
    return conclude(targets) if targets else 0


if __name__ == "__main__":
    sys.exit(main())
