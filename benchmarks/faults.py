"""Fault injection: killed trainings, corrupted checkpoints, full disks, long runs.

    python -m benchmarks.faults --what kill       # kill -9 at 50 random moments, also during saves
    python -m benchmarks.faults --what stages     # kill -9 at 20 moments of `flatgd run`
    python -m benchmarks.faults --what corrupt    # each file deleted, truncated, one bit flipped
    python -m benchmarks.faults --what disk       # a small file system, full at 20 points (root)
    python -m benchmarks.faults --what soak       # 10,000 steps: memory, open files, threads
    python -m benchmarks.faults --what fuzz       # 1,000 broken recipes
    python -m benchmarks.faults --what hostile    # attacks and accidents, case by case

Prints how many cases were tried and survived, and exits with 1 if one did not survive. Uses a small
model and the shipped data.
"""

import contextlib
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BlenderbotConfig,
    BlenderbotForConditionalGeneration,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils.logging import disable_progress_bar

from benchmarks.hostile import hostile
from benchmarks.table import DEMO, machine, options
from flatgd import FlatGDConfig, FlatGDTrainer, load_tokenizer
from flatgd.config.loading import load_recipe
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.errors import CheckpointError, FlatGDError
from flatgd.run import run
from flatgd.training.checkpoints import SAVING, checkpoints, fault_of, last_good

STEPS, EACH = 12, 2  # steps of a training, and between its checkpoints


def model(seed: int) -> BlenderbotForConditionalGeneration:
    torch.manual_seed(seed)
    config = BlenderbotConfig(
        vocab_size=6000,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        dropout=0.1,
    )
    return BlenderbotForConditionalGeneration(config)


def training(folder: Path, steps: int = STEPS, **fields: Any) -> FlatGDTrainer:
    given = {"save_strategy": "steps", "save_steps": EACH, "learning_rate": 1e-3, **fields}
    trainer = FlatGDTrainer(
        model(0),
        FlatGDConfig(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            max_reply_tokens=16,
            max_history_tokens=16,
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            **given,
        ),
        train_dataset=load_diasafety(DEMO / "data/diasafety", "train")[:64],
        processing_class=load_tokenizer(str(DEMO / "backbone")),
        clean_expert=model(1),
        toxic_expert=model(2),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def weights(trainer: FlatGDTrainer) -> bytes:
    return b"".join(t.detach().numpy().tobytes() for t in trainer.model.state_dict().values())


def resume_or_train(folder: Path) -> bytes:
    """Resume from the folder's state and train to the end. Returns the final weights."""
    trainer = training(folder)
    trainer.resume_or_train()
    return weights(trainer)


def in_child(job: Callable[[], Any]) -> int:
    """Run in a forked child process, without start-up time. Returns its process id."""
    child = os.fork()
    if child:
        return child
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    code = 1
    with contextlib.suppress(BaseException):
        job()
        code = 0
    os._exit(code)


def kill(place: Path, times: int) -> tuple[int, int]:
    rng, begun = random.Random(0), time.monotonic()
    wanted = resume_or_train(place / "whole")
    lasts = time.monotonic() - begun
    survived = inside = 0
    for number in range(times):
        folder = place / str(number)
        child = in_child(lambda folder=folder: resume_or_train(folder))  # type: ignore[misc]
        time.sleep(rng.uniform(0, lasts))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        inside += (folder / SAVING).exists()
        survived += resume_or_train(folder) == wanted
        shutil.rmtree(folder)
    print(f"kill -9 over {lasts:.1f} s of training, {inside} of them inside a save")
    return times, survived


RECIPE = """
name: small
output: run
backbone: {backbone}
scorer: {backbone}
data:
  policy: [{{name: d, format: diasafety, path: demo:data/diasafety, split: train, share: [0, 0.1]}}]
  judge: [{{name: d, format: diasafety, path: demo:data/diasafety, split: val}}]
  test: [{{name: d, format: diasafety, path: demo:data/diasafety, split: test, share: [0, 0.1]}}]
max_history_tokens: 16
max_reply_tokens: 16
train: {{max_steps: 3, per_device_train_batch_size: 4, save_strategy: steps, save_steps: 1}}
methods: {{clean: {{}}, safety_loss: {{}}, flatgd: {{}}}}
generate: {{histories: 4, samples: 2, max_new_tokens: 8}}
report: {{resamples: 100}}
"""


def run_all(folder: Path, backbone: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE.format(backbone=backbone))
    run(load_recipe(folder / "recipe.yaml"))


def outcome(folder: Path) -> dict[str, bytes]:
    """The results of a run: weights, replies, scores, metrics."""
    kinds = (".safetensors", ".jsonl")
    run = folder / "run"
    files = [p for p in run.rglob("*") if p.suffix in kinds and p.name != "training.jsonl"]
    files.append(run / "report/summary.json")
    return {str(p.relative_to(run)): p.read_bytes() for p in files if p.exists()}


def stages(place: Path, times: int) -> tuple[int, int]:
    """kill -9 at any moment of `flatgd run`, then the same command again."""
    backbone = place / "backbone"
    model(0).save_pretrained(backbone)
    load_tokenizer(str(DEMO / "backbone")).save_pretrained(backbone)
    rng, begun = random.Random(0), time.monotonic()
    os.waitpid(in_child(lambda: run_all(place / "whole", backbone)), 0)
    lasts, wanted = time.monotonic() - begun, outcome(place / "whole")
    survived, reached = 0, set()
    for number in range(times):
        folder = place / str(number)
        child = in_child(lambda folder=folder: run_all(folder, backbone))  # type: ignore[misc]
        time.sleep(rng.uniform(0, lasts))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = sorted((folder / "run/.stages").glob("*"), key=os.path.getmtime)
        reached.add(done[-1].name if done else "none")
        os.waitpid(in_child(lambda folder=folder: run_all(folder, backbone)), 0)  # type: ignore[misc]
        survived += outcome(folder) == wanted
        shutil.rmtree(folder)
    print(
        f"kill -9 over {lasts:.1f} s of `flatgd run`, after {len(reached)} "
        f"different stages; {len(wanted)} files compared"
    )
    return times, survived


def deleted(path: Path, rng: random.Random) -> None:
    path.unlink()


def cut(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flipped(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def corrupt(place: Path, times: int) -> tuple[int, int]:
    rng, whole = random.Random(0), place / "whole"
    resume_or_train(whole)
    before, newest = checkpoints(whole)
    tried = survived = 0
    for integrity_error in (deleted, cut, flipped):
        for path in sorted(newest.iterdir()):
            for _ in range(1 if integrity_error is deleted else times):
                folder = place / "corrupted"
                shutil.copytree(whole, folder)
                integrity_error(folder / newest.name / path.name, rng)
                tried += 1
                survived += last_good(folder) == folder / before.name
                shutil.rmtree(folder)
    return tried, survived


def disk(place: Path, times: int) -> tuple[int, int]:
    """Less and less disk space for a training; then enough space, and the training resumes."""
    wanted = resume_or_train(place / "whole")
    one = sum(p.stat().st_size for p in checkpoints(place / "whole")[0].iterdir())
    survived = 0
    for number in range(times):
        folder = place / "small"
        folder.mkdir()
        room = int(one * (1.05 + 1.9 * number / times))  # of three that there are for a moment
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)], check=True
        )
        try:
            survived += _stays_whole(folder, wanted)
        finally:
            subprocess.run(["umount", str(folder)], check=True)
            folder.rmdir()
    return times, survived


def _stays_whole(folder: Path, wanted: bytes) -> bool:
    try:
        resume_or_train(folder)
    except CheckpointError as error:
        is_told = "free there" in str(error) and "Free some space" in str(error)
    else:
        return False  # it was not small enough
    is_whole = all(fault_of(path) is None for path in checkpoints(folder))
    subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)
    return is_told and is_whole and bool(checkpoints(folder)) and resume_or_train(folder) == wanted


class Usage(TrainerCallback):
    """Resident memory in bytes, open files and threads, at a fifth of the steps, after the first
    saves, and at the end."""

    def __init__(self, steps: int):
        self.steps, self.seen = steps, {}  # type: ignore[var-annotated]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.steps // 5, self.steps):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen[state.global_step] = (
                pages * os.sysconf("SC_PAGE_SIZE"),
                len(list(Path("/proc/self/fd").iterdir())),
                threading.active_count(),
            )


def soak(place: Path, times: int) -> tuple[int, int]:
    steps = 200 * times
    usage = Usage(steps)
    trainer = training(place, steps, save_steps=steps // 10)
    trainer.add_callback(usage)
    trainer.train()
    (early, files, threads), (late, *others) = usage.seen.values()
    size = sum(p.stat().st_size for p in place.rglob("*") if p.is_file())
    one = sum(p.stat().st_size for p in checkpoints(place)[0].rglob("*"))
    print(f"{steps:,} steps: memory {early / 2**20:.0f} -> {late / 2**20:.0f} MB", end="")
    print(f", open files {files} -> {others[0]}, threads {threads} -> {others[1]}", end="")
    print(f", folder {size / one:.2f} checkpoints")
    held = (late <= 1.02 * early, [files, threads] == others, size <= 2.1 * one)
    return len(held), sum(held)


PIECES = [
    "null",
    "[]",
    "{}",
    "-1",
    "1e999",
    "''",
    "true",
    ": ",
    "- ",
    "\t",
    "é",
    "!!python/name:os",
]
PIECES += ["&a", "*a", "\0", "nan", "'", "{", "x" * 300, "..", "/", "\n", "2020-01-01", "0x1F"]


def broken(text: str, rng: random.Random) -> str:
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(text) + 1)
        gone = rng.choice((0, 0, 1, 5, 40))
        text = text[:place] + rng.choice(PIECES) + text[place + gone :]
    return text


def fuzz(place: Path, times: int) -> tuple[int, int]:
    rng = random.Random(0)
    recipes = [path.read_text() for path in sorted((DEMO.parent.parent / "recipes").glob("*.yaml"))]
    survived = 0
    for number in range(20 * times):
        path = place / "recipe.yaml"
        path.write_text(broken(rng.choice(recipes), rng))
        try:
            load_recipe(path)
        except FlatGDError as error:
            survived += bool(str(error))
        except Exception as error:
            print(f"recipe {number}: {type(error).__name__}: {error}"[:200])
        else:
            survived += 1
    return 20 * times, survived


WHAT = {
    "kill": kill,
    "stages": stages,
    "corrupt": corrupt,
    "disk": disk,
    "soak": soak,
    "fuzz": fuzz,
    "hostile": hostile,
}


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--what", choices=list(WHAT), required=True)
    parser.add_argument("--times", type=int, default=0, help="number of cases; by default as above")
    given = parser.parse_args()
    times = given.times or {"kill": 50, "stages": 20, "corrupt": 10, "disk": 20}.get(given.what, 50)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    disable_progress_bar()
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        tried, survived = WHAT[given.what](Path(place), times)
    print(f"{given.what}: {tried:,} tried, {survived:,} survived")
    return 0 if tried == survived else 1


if __name__ == "__main__":
    sys.exit(main())
