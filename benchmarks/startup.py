"""The time before a run's first steps: reading, splitting and tokenizing a large data set.

    python -m benchmarks.startup MODEL_FOLDER [--rows 300000] [--against CHECKOUT]

Writes invented labelled replies of the size and shape of BeaverTails, and a recipe with two experts
and two methods. A fresh process runs the recipe with one step a training, on a tiny model of the
architecture of MODEL_FOLDER with its tokenizer and chat template. The table shows what precedes
each first step: seconds, seconds of both cores together, and texts that were tokenized. `--against`
measures another checkout too, first. Exits with 1 if a target is missed.
"""

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

# flatgd is imported inside functions, because the measured process may run another checkout

MODELS = ("clean_expert", "toxic_expert", "safety_loss", "flatgd")
MAX_SECONDS = 60.0  # before the first steps of all trainings together
MAX_AGAIN = 2.0  # before the first step of a training whose rows are encoded already
MAX_GB = 4.0
COMMON = (
    "the a to and of in is it you that for on with as are this be have or can at your not from "
    "they we will my one all would there their what so up out if about who get which go me when "
    "make like time no just him know take people into year good some could them see other than "
    "then now look only come its over think also back after use two how our work first well way "
    "even new want any day tea garden bread window river walk friend letter kitchen morning"
)
SYLLABLES = "ba be bi bo da de di do fa fi ga go ka ki la le li lo ma me mi mo na ne ni no"
COLUMNS = "{prompt: prompt, completion: response, label: is_safe, conversation: id}"
SOURCE = f"name: rows, format: jsonl, path: rows.jsonl, columns: {COLUMNS}"
RECIPE = f"""
name: startup
output: OUTPUT
backbone: backbone
data:
  policy: [{{{SOURCE}, share: [0, 0.96]}}]
  judge: [{{{SOURCE}, share: [0.96, 0.98]}}]
  test: [{{{SOURCE}, share: [0.98, 1]}}]
max_history_tokens: 128
max_reply_tokens: 128
train: {{max_steps: 1, per_device_train_batch_size: 4, save_strategy: steps, save_steps: 1}}
methods: {{safety_loss: {{}}, flatgd: {{}}}}
"""


class Texts:
    """Invented texts: mostly common words, the rest from 20,000 made of syllables."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        syllables, common = SYLLABLES.split(), COMMON.split()
        rare = [
            "".join(self.rng.choices(syllables, k=self.rng.randint(2, 4))) for _ in range(20_000)
        ]
        self.words = [*common, *rare]
        weights = [1 / (place + 3) for place in range(len(common))]
        weights += [0.12 / (place + 20) for place in range(len(rare))]
        self.cumulated = list(accumulate(weights))

    def text(self, words: int) -> str:
        """Sentences of about so many words."""
        rng = self.rng
        count = max(3, round(rng.gauss(words, words / 4)))
        said = rng.choices(self.words, cum_weights=self.cumulated, k=count)
        for start in range(0, count, 12):
            said[start] = said[start].capitalize()
            said[min(start + 11, count - 1)] += rng.choice((".", ".", "!", "?", ",", ".\n\n"))
        whole = " ".join(said)
        return whole.replace("e", "\u00e9", 1) if rng.random() < 0.03 else whole


def write_data(path: Path, rows: int, seed: int = 0) -> None:
    """JSON lines with the keys of BeaverTails; three replies to a prompt."""
    texts = Texts(seed)
    with path.open("w", encoding="utf-8") as file:
        prompt = ""
        for number in range(rows):
            prompt = texts.text(17) if number % 3 == 0 else prompt
            row = {
                "prompt": prompt,
                "response": texts.text(55),
                "category": {"invented": True},
                "is_safe": texts.rng.random() < 0.45,
                "id": f"p{number // 3}",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_model(source: str, folder: Path) -> None:
    """A model of the same architecture with a few weights, and the same tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = AutoConfig.from_pretrained(source, local_files_only=True)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "dtype": "float32"}
    for name, value in (small | heads).items():
        setattr(config, name, value)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)


class Cost(NamedTuple):
    """Seconds, seconds of all cores together, texts tokenized."""

    seconds: float
    cpu: float
    texts: int

    def plus(self, other: "Cost", times: int = 1) -> "Cost":
        seconds, cpu, texts = other
        return Cost(
            self.seconds + times * seconds, self.cpu + times * cpu, self.texts + times * texts
        )

    def minus(self, other: "Cost") -> "Cost":
        return self.plus(other, -1)


class Meter:
    """What the process has used so far, what it had used at the last first step of a training, and
    what all fingerprints for checkpoints have used."""

    def __init__(self) -> None:
        from transformers.trainer_callback import CallbackHandler

        from flatgd.models.text_encoder import TextEncoder
        from flatgd.training.trainer import FlatGDTrainer

        self.texts, self.at_step, self.fingerprints = 0, Cost(0, 0, 0), Cost(0, 0, 0)
        step, ids, fingerprint = (
            CallbackHandler.on_step_begin,
            TextEncoder.ids,
            FlatGDTrainer.fingerprint,
        )

        def on_step_begin(*args: Any, **kwargs: Any) -> Any:
            self.at_step = self.now()
            return step(*args, **kwargs)

        def counted(encoder: Any, texts: Any, *args: Any) -> Any:
            self.texts += len(texts)
            return ids(encoder, texts, *args)

        def timed(trainer: Any) -> Any:
            begun = self.now()
            found = fingerprint(trainer)
            self.fingerprints = self.fingerprints.plus(self.now().minus(begun))
            return found

        CallbackHandler.on_step_begin = on_step_begin  # type: ignore[method-assign]
        TextEncoder.ids = counted  # type: ignore[method-assign, assignment]
        FlatGDTrainer.fingerprint = timed  # type: ignore[method-assign, assignment]

    def now(self) -> Cost:
        return Cost(time.perf_counter(), time.process_time(), self.texts)


def measure(recipe: Path) -> dict[str, Any]:
    """The parts of a run in this process that precede first steps."""
    from rich.console import Console

    import flatgd
    from flatgd.config.loading import load_recipe
    from flatgd.pipeline.pipeline import Pipeline
    from flatgd.runtime.display import Display

    meter = Meter()
    parts: dict[str, Cost] = {}

    def part(name: str, work: Callable[[], Any]) -> Any:
        begun = meter.now()
        result = work()
        parts[name] = meter.now().minus(begun)
        return result

    with open(os.devnull, "w") as nowhere:
        display, loaded = Display(Console(file=nowhere)), load_recipe(recipe)
        pipeline = part("read, split, validate", lambda: Pipeline(loaded, display))
        part(
            "describe, show an example",
            lambda: (pipeline.context.sets.described(), pipeline.example()),
        )
        part("fingerprints of models", lambda: [*map(pipeline.context.plan.fingerprint, MODELS)])
        for name in MODELS:
            begun, checked = meter.now(), meter.fingerprints
            pipeline.models.train(name)
            own = meter.fingerprints.minus(checked)  # of its first checkpoint
            parts[name] = meter.at_step.minus(begun).plus(own)
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    kilobytes = sum(resource.getrusage(who).ru_maxrss for who in whose)
    checkout = str(Path(flatgd.__file__).parent.parent)
    return {"parts": parts, "gigabytes": kilobytes / 2**20, "checkout": checkout}


def in_fresh_process(recipe: Path, checkout: Path) -> dict[str, Any]:
    """`measure` with the flatgd of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", __file__, "--measure", str(recipe)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found["parts"] = {name: Cost(*cost) for name, cost in found["parts"].items()}
    assert found["checkout"] == str(checkout), f"measured {found['checkout']}, not {checkout}"
    return found


def show(found: dict[str, Any]) -> Cost:
    """Print one table; return its last line, the sum."""
    print(f"\n{found['checkout']:<28}{'seconds':>10}{'of cores':>10}{'texts':>12}")
    whole = Cost(0, 0, 0)
    for name, cost in found["parts"].items():
        whole = whole.plus(cost)
        print(f"{name:<28}{cost.seconds:>10.1f}{cost.cpu:>10.1f}{cost.texts:>12,}")
    print(f"{'together':<28}{whole.seconds:>10.1f}{whole.cpu:>10.1f}{whole.texts:>12,}")
    print(f"peak memory {found['gigabytes']:.2f} GB")
    return whole


def main() -> int:
    from benchmarks.table import Target, conclude, machine, options

    parser = options(__doc__)
    parser.add_argument("model", help="folder with config.json, tokenizer and chat template")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--against", type=Path, help="another checkout")
    given = parser.parse_args()
    print(machine())
    here = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_data(folder / "rows.jsonl", given.rows)
        write_model(given.model, folder / "backbone")
        for number, checkout in enumerate([given.against, here]):
            if checkout is not None:
                recipe = folder / f"recipe{number}.yaml"
                recipe.write_text(RECIPE.replace("OUTPUT", f"run{number}"))
                found = in_fresh_process(recipe, checkout.resolve())
                whole = show(found)
    again = max(found["parts"][name].seconds for name in MODELS[2:])
    return conclude(
        [
            Target("everything before the first steps, s", whole.seconds, MAX_SECONDS),
            Target("a method, its rows encoded already, s", again, MAX_AGAIN),
            Target("peak memory, GB", found["gigabytes"], MAX_GB),
        ]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
        sys.exit(0)
    sys.exit(main())
