"""Two processes (DDP, gloo, CPU) walk the trajectory of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot
from safetensors.torch import load_file, save_file

from flatgd import FlatGDConfig, FlatGDTrainer


def work(output: Path, rows_a_process: int, method: str) -> None:
    """Three steps over batches of eight rows in all; the first process saves what came out."""
    trainer = FlatGDTrainer(
        tiny_blenderbot(),
        FlatGDConfig(
            output_dir=str(output),
            max_steps=3,
            per_device_train_batch_size=rows_a_process,
            micro_batch_size=3,
            flatness_method=method,
            optim="sgd",
            learning_rate=0.1,
            penalty_warmup=0.0,
            penalty_share=1.0,
            use_cpu=True,
            disable_tqdm=True,
            max_reply_tokens=32,
        ),
        train_dataset=mild_rows(24, seed=8),
        processing_class=byte_tokenizer(),
        clean_expert=tiny_blenderbot(seed=1),
        toxic_expert=tiny_blenderbot(seed=2),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        save_file(dict(trainer.model.named_parameters()), output / "weights.safetensors")
        (output / "log.txt").write_text(str(trainer.state.log_history[0]["lm"]))


@pytest.mark.parametrize("method", ["finite_difference", "exact"])
def test_two_processes_equal_one(tmp_path: Path, method: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    work(one, 8, method)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, __file__, str(two), "4", method],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = load_file(one / "weights.safetensors"), load_file(two / "weights.safetensors")
    start = dict(tiny_blenderbot().named_parameters())
    gone = max(float((start[name] - ours[name]).detach().abs().max()) for name in ours)
    apart = max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
    assert apart <= 1e-3 * gone
    logged = [float((folder / "log.txt").read_text()) for folder in (one, two)]
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
