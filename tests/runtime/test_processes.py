"""Two processes (DDP and FSDP2, gloo, CPU) walk the trajectory of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, DistributedType
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, tiny_llama
from safetensors.torch import load_file
from torch import Tensor

from flatgd import FlatGDConfig, FlatGDTrainer
from flatgd.config.loading import load_recipe
from flatgd.errors import RecipeError
from flatgd.models.encoding import IGNORE
from flatgd.pipeline.training_config import training_config
from flatgd.runtime import distributed
from flatgd.training.loop import gathered_weights
from flatgd.training.micro_batches import without_repeats

pytestmark = pytest.mark.slow

EVALUATED = ("eval_loss", "eval_lm", "eval_js_clean", "eval_js_toxic")
REUSED = "finite_difference, used again"
MODELS = {"blenderbot": tiny_blenderbot, "llama": tiny_llama}
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def work(output: Path, rows_a_process: int, kind: str, method: str) -> None:
    """Four steps over batches of eight rows in all; the first process saves what came out."""
    make = MODELS[kind]
    trainer = FlatGDTrainer(
        make(),
        FlatGDConfig(
            output_dir=str(output),
            max_steps=4,
            per_device_train_batch_size=rows_a_process,
            micro_batch_size=3,
            optim="sgd",
            learning_rate=0.1,
            penalty_warmup=0.0,
            penalty_share=0.5,
            use_cpu=True,
            disable_tqdm=True,
            max_reply_tokens=32,
            **({"penalty_every": 4} if method == REUSED else {"flatness_method": method}),
            # measured, rho can differ between two computations of one gradient
            rho=None if method == "lookahead" else 3e-4,
            eval_strategy="steps",
            eval_steps=1,
            per_device_eval_batch_size=3,
        ),
        train_dataset=mild_rows(20, seed=8),
        eval_dataset=mild_rows(11, seed=9),  # two processes fill their last batches up
        processing_class=byte_tokenizer(),
        clean_expert=make(seed=1),
        toxic_expert=make(seed=2),
    )
    trainer.train()
    weights = gathered_weights(trainer)
    if trainer.is_world_process_zero():
        if os.environ.get("ACCELERATE_USE_FSDP"):
            assert trainer.accelerator.is_fsdp2
        trainer.model.save_pretrained(output, state_dict=weights)
        log = trainer.state.log_history
        figures = [entry[name] for name in ("lm", *EVALUATED) for entry in log if name in entry]
        (output / "log.txt").write_text(json.dumps(figures))


def shard_on_cpu() -> None:
    """accelerate shards on cards alone; gloo can do it on a CPU too."""
    original = AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        is_on_cpu = self.distributed_type == DistributedType.MULTI_CPU
        if is_on_cpu and self.__dict__.get("fsdp_plugin") is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = init  # type: ignore[method-assign]


CASES = {
    "ddp": [
        ("blenderbot", "finite_difference"),
        ("blenderbot", "exact"),
        ("llama", "fast"),
        ("blenderbot", "lookahead"),
        ("llama", REUSED),
    ],
    "fsdp2": [
        ("blenderbot", "finite_difference"),
        ("llama", "fast"),
        ("llama", "lookahead"),
        ("blenderbot", REUSED),
    ],
}


TESTS = Path(__file__).parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS / 'support'}"}


@pytest.fixture(scope="module", params=list(CASES))
def worked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """(model, folder of one process, folder of two) of each case; two are started once for all."""
    place = tmp_path_factory.mktemp(request.param)
    cases = [(*case, place / "-".join(case)) for case in CASES[request.param]]
    for kind, method, folder in cases:
        (folder / "two").mkdir(parents=True)
        work(folder / "one", 8, kind, method)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [word for kind, method, folder in cases for word in (kind, method, str(folder / "two"))]
    done = subprocess.run(
        [*launch, __file__, *words],
        capture_output=True,
        text=True,
        env={**os.environ, **ONE_THREAD, **(FSDP2 if request.param == "fsdp2" else {})},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [(kind, folder / "one", folder / "two") for kind, _, folder in cases]


def test_two_processes_equal_one(worked: list[Any]) -> None:
    for kind, one, two in worked:
        start = {name: p.detach() for name, p in MODELS[kind]().named_parameters()}
        assert apart(start, one, two) <= 1e-3, one
        logged = [json.loads((folder / "log.txt").read_text()) for folder in (one, two)]
        assert len(logged[0]) == 4 * (1 + len(EVALUATED))
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)


def apart(start: dict[str, Tensor], one: Path, two: Path) -> float:
    """How far two checkpoints lie from each other, relative to how far the first has gone."""
    ours, theirs = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert ours.keys() == theirs.keys()
    gone = max(float((start[name] - ours[name]).abs().max()) for name in ours if name in start)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours) / gone


def run(recipe: Path, processes: int, *overrides: str) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    sets = [part for override in overrides for part in ("--set", override)]
    return subprocess.run(
        [*launch, "-m", "flatgd", "run", str(recipe), *sets],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_run_over_two_processes_is_the_run_of_one(recipe_file: Path) -> None:
    """Training, sampling, generation and scoring shared out; one report, and nothing done twice."""
    same = [
        "train.optim=sgd",
        "train.snapshots=1",
        "train.expert_cache=states",
        "generate.batch_size=2",
        "methods={clean: {}, flatgd: {}, dexperts: {strength: 1}, cringe: {sampled_from: clean}}",
    ]
    folder = recipe_file.parent
    one = run(recipe_file, 1, "output=one", *same)
    two = run(recipe_file, 2, "output=two", *same)
    assert one.returncode == 0, one.stderr[-3000:]
    assert two.returncode == 0, two.stderr[-3000:]
    assert two.stdout.count("methods/flatgd ") == 1  # the other process is silent
    start = load_file(Path(load_recipe(recipe_file, None).backbone) / "model.safetensors")
    for made in ("experts/toxic", "methods/clean", "methods/flatgd"):
        assert apart(start, folder / "one" / made, folder / "two" / made) <= 1e-3
    summaries = [
        json.loads((folder / n / "report/summary.json").read_text()) for n in ("one", "two")
    ]
    values = [
        {(r["method"], r["dataset"], r["metric"]): r["value"] for r in summary if "metric" in r}
        for summary in summaries
    ]
    assert values[0].keys() == values[1].keys()
    for key, value in values[0].items():
        wanted = None if value is None else pytest.approx(value, rel=1e-2, abs=1e-2)
        assert values[1][key] == wanted, key


@pytest.mark.parametrize(
    ("items", "rank", "kept"),
    [(7, 0, 2), (8, 0, 3), (8, 1, 0), (10, 0, 5), (10, 1, 2), (12, 1, 5)],
)
def test_what_fills_up_an_epochs_last_batch_is_emptied(items: int, rank: int, kept: int) -> None:
    """Batches of two times three items: here a pair, a row alone, a pair. `kept` rows are real."""
    accelerator: Any = SimpleNamespace(
        num_processes=2,
        process_index=rank,
        gradient_state=SimpleNamespace(end_of_dataloader=True),
    )
    is_safe = torch.tensor([False, True, False, False, True])
    pair = torch.tensor([0, 0, -1, 2, 2])
    targets = torch.full((5, 2), 4)
    batch = {"targets": targets, "is_safe": is_safe, "pair": pair}
    left = without_repeats(batch, items, accelerator)
    assert (left["targets"] != IGNORE).all(1).tolist() == [row < kept for row in range(5)]
    assert left["pair"].tolist() == pair[:kept].tolist() + [-1] * (5 - kept)
    assert left["is_safe"].tolist() == is_safe[:kept].tolist() + [True] * (5 - kept)


def test_a_batch_that_cannot_be_shared_out_is_refused(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file, None)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RecipeError, match="multiple of 3"):
        training_config(recipe, {}, Path("x"))


if __name__ == "__main__":
    shard_on_cpu()
    words = sys.argv[1:]
    for case in zip(words[::3], words[1::3], words[2::3], strict=True):
        work(Path(case[2]), 4, *case[:2])
    distributed.leave()
