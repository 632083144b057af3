"""Numbers gone wrong, memory run out, two runs in one folder."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training import DESCENT, largest_difference, trained, trainer

from flatgd.errors import InUseError, MemoryLimitError, NonFiniteError
from flatgd.io.files import lock_folder
from flatgd.methods import FlatGD
from flatgd.training.callbacks import MIN_LOSSES, Watch
from flatgd.training.config import CHECKPOINTING


class Poisoned(FlatGD):
    """Its loss of the eighth training row is NaN."""

    def terms(self, policy: Any, batch: Any, totals: Any) -> Any:
        scored = super().terms(policy, batch, totals)
        if 7 not in batch["row"].tolist():
            return scored
        return scored._replace(figures={**scored.figures, "lm": torch.tensor(torch.nan)})


def test_nan_tells_step_and_rows(tmp_path: Path) -> None:
    subject = trainer(
        tmp_path,
        kind=Poisoned,
        fused_head=False,
        micro_batch_size=1,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
    )
    with pytest.raises(NonFiniteError, match=r"step [12]: lm is NaN .* training rows 8 \(\S+\)"):
        subject.train()
    for path in tmp_path.rglob("*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())


class Small(FlatGD):
    """A device with room for `rows` rows."""

    rows = 2
    calls = 0
    after = 3  # calls; then it runs out, in the first step's second pass

    def fused(self, policy: Any, batch: Any, totals: Any, mix: Any = None) -> Any:
        type(self).calls += 1
        found = super().fused(policy, batch, totals, mix)
        if len(batch["is_safe"]) > self.rows and self.calls > self.after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found


@pytest.mark.parametrize(
    ("own", "after"),
    [
        ({"flatness_method": "finite_difference"}, 9),  # after six that check the difference
        ({"flatness_method": "fast"}, 6),
        ({"penalty_momentum": 0.5}, 17),  # in the third step's second pass
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_changes_nothing(
    tmp_path: Path,
    own: dict[str, Any],
    after: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(Small, "calls", 0)
    monkeypatch.setattr(Small, "after", after)
    fields = {**own, "penalty_share": 1.0, **DESCENT}
    plain = trained(tmp_path / "a", **fields)
    small = trainer(tmp_path / "b", kind=Small, **fields)
    with caplog.at_level(logging.WARNING):
        small.train()
    assert small.args.micro_batch_size == 2
    assert "out of memory with 8 rows at a time; continuing with 4" in caplog.text
    assert largest_difference(plain, dict(small.model.state_dict())) <= 1e-5


def test_no_room_for_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "rows", 0)
    subject = trainer(tmp_path, kind=Small)
    with pytest.raises(MemoryLimitError, match=f"1 row at a time; try {CHECKPOINTING}"):
        subject.train()


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    class Broken(FlatGD):
        def fused(self, *args: Any) -> Any:
            raise RuntimeError("shapes differ")

    subject = trainer(tmp_path, kind=Broken)
    with pytest.raises(RuntimeError, match="shapes differ"):
        subject.train()


class State:
    global_step = 40


class Args:
    flatness_weight: float | None = 0.5


def test_a_spike_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch()
    steady = [2.0 + 0.1 * (-1) ** step for step in range(MIN_LOSSES)]
    with caplog.at_level(logging.WARNING):
        for loss in [9.0, *steady]:  # the first has nothing to be compared with
            watch.on_log(Args, State, None, {"loss": loss})
        assert caplog.text == ""
        for loss in (6.0, 6.0, 2.5):
            watch.on_log(Args, State, None, {"loss": loss})
    assert caplog.text.count("the loss is 6, after about 2") == 1


@pytest.mark.parametrize(
    ("weight", "share", "told"),
    [
        (0.5, 9.0, "9 times the norm of the rest; lower"),
        (0.5, 1e-4, "; raise"),
        (0.5, 0.3, ""),
        (None, 9, ""),
    ],
)
def test_a_penalty_out_of_range_is_reported(
    weight: float | None, share: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Given(Args):
        flatness_weight = weight

    with caplog.at_level(logging.WARNING):
        Watch().on_log(Given, State, None, {"penalty_share": share})
    assert told in caplog.text
    assert bool(told) == bool(caplog.text)


def test_one_process_in_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from flatgd.io.files import lock_folder; "
        "lock = lock_folder(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"process {other.pid} on .*choose another output"):
            lock_folder(tmp_path)
        other.kill()  # a hold ends with its process
    assert lock_folder(tmp_path) is lock_folder(tmp_path)
