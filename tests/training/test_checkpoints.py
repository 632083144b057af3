"""Checkpoints: whole or not there, known to be whole; signals, full disks, changed settings."""

import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training import DESCENT, largest_difference, trained, trainer
from transformers import TrainerCallback

from flatgd.errors import CheckpointError, NonFiniteError, StoppedError
from flatgd.io.files import values_digest
from flatgd.training import checkpoints
from flatgd.training.checkpoints import fault_of, last_good

EACH_STEP = {"save_strategy": "steps", "save_steps": 1}
FILES = (
    *("config.json", "generation_config.json", "manifest.json", "model.safetensors"),
    *("optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json"),
    *("trainer_state.json", "training_args.bin"),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    trainer(folder, **EACH_STEP).train()
    return folder


def test_the_last_two_stay_and_nothing_else(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert sorted(path.name for path in (saved / "checkpoint-3").iterdir()) == list(FILES)
    assert fault_of(saved / "checkpoint-3") is None


def missing(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [missing, cut, flipped])
@pytest.mark.parametrize("name", FILES)
def test_any_corruption_is_noticed_and_fallen_back_from(
    saved: Path, tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(saved, folder)
    damage(folder / "checkpoint-3" / name)
    with caplog.at_level(logging.WARNING):
        assert last_good(folder) == folder / "checkpoint-2"
    assert f"checkpoint-3: {'its ' * (name == 'manifest.json')}{name}" in caplog.text
    assert not (folder / "checkpoint-3").exists()


@pytest.mark.parametrize("number", [0, None])
def test_another_format_is_refused_and_kept(saved: Path, tmp_path: Path, number: Any) -> None:
    folder = tmp_path / "checkpoint-3"
    shutil.copytree(saved / "checkpoint-3", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("format") == checkpoints.FORMAT
    del manifest["sha256"]
    if number is not None:
        manifest["format"] = number
    digest = values_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sha256": digest}))
    written = "no format number" if number is None else f"format {number}"
    reason = f"its manifest.json has {written}, and this version of flatgd reads format 1"
    assert fault_of(folder) == reason
    with pytest.raises(CheckpointError, match=f"{reason}. Move it away"):
        last_good(tmp_path)
    assert (folder / "model.safetensors").exists()


def test_resume_takes_the_newest_good_one_and_ends_at_the_same_weights(tmp_path: Path) -> None:
    whole = trained(tmp_path / "a", max_steps=4, **EACH_STEP)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    flipped(tmp_path / "b/checkpoint-4/optimizer.pt")
    resumed = trainer(tmp_path / "b", max_steps=4, **EACH_STEP)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(whole, dict(resumed.model.state_dict())) == 0.0


def test_a_corrupted_one_that_is_named_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "checkpoint-3", tmp_path / "checkpoint-3")
    missing(tmp_path / "checkpoint-3/optimizer.pt")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is missing; resume from another"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        trainer(tmp_path / "none").train(resume_from_checkpoint=True)


def test_a_changed_training_is_refused(saved: Path) -> None:
    changed = trainer(saved, learning_rate=0.5, penalty_share=0.7, **EACH_STEP)
    told = (
        r": learning_rate: was 0\.01, now 0\.5; penalty_share: was None, now 0\.7\. Undo the change"
    )
    with pytest.raises(CheckpointError, match=told):
        changed.train(resume_from_checkpoint=True)
    more = trainer(saved, max_steps=4)  # longer is no other training
    more.train(resume_from_checkpoint=True)
    assert more.state.global_step == 4


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    class Spoil(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                next(iter(kwargs["model"].parameters())).data[0] = torch.inf

    subject = trainer(tmp_path, **EACH_STEP)
    subject.add_callback(Spoil())
    with pytest.raises(NonFiniteError, match="step 2: NaN or infinity in 1 of"):
        subject.train()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]


@pytest.mark.parametrize("what", ["sync_to_disk", "write_sealed"])
def test_a_full_disk_leaves_the_last_good_one(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path, max_steps=1, **EACH_STEP).train()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, what, full)
    with pytest.raises(CheckpointError, match=r"No space left.*checkpoint-1 is kept. Free"):
        trainer(tmp_path, **EACH_STEP).train(resume_from_checkpoint=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert last_good(tmp_path) == tmp_path / "checkpoint-1"


class Signal(TrainerCallback):
    """One comes in the midst of the second step."""

    def __init__(self, number: int, times: int = 1):
        self.number, self.times = number, times

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_saves_and_resumes_later(
    tmp_path: Path, number: int, code: int
) -> None:
    whole = trained(tmp_path / "a", max_steps=4)
    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    stopped = trainer(tmp_path / "b", max_steps=4)
    stopped.add_callback(Signal(number))
    with pytest.raises(
        StoppedError, match=r"stopped after step 2; the checkpoint is .*checkpoint-2"
    ) as told:
        stopped.train()
    assert told.value.code == code
    assert handlers == [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    resumed = trainer(tmp_path / "b", max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(whole, dict(resumed.model.state_dict())) == 0.0


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    stopped = trainer(tmp_path)
    stopped.add_callback(Signal(signal.SIGINT, times=2))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()


def test_saving_changes_nothing(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "a", **DESCENT), trained(tmp_path / "b", **EACH_STEP, **DESCENT)
    assert largest_difference(one, other) == 0.0
