"""Checkpoints inside a training: there whole or not at all, and known to be whole.

    checkpoint-40/                Trainer's own files: weights, optimizer, scheduler, random states
    checkpoint-40/manifest.json   each file's size and SHA-256, and what the training was of

One is written in `.saving/`, flushed, given its manifest, renamed, and read again; only then does
the oldest one go. A resume takes the newest that is as its manifest has it, and tells of those that
are not.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from flatgd.errors import CheckpointError, FlatGDError, NonFiniteError, StoppedError
from flatgd.flatness import is_finite
from flatgd.io.files import file_digests, integrity_error, sync_to_disk, write_atomically
from flatgd.models.trust import REFUSED
from flatgd.runtime import distributed
from flatgd.training.callbacks import Stop
from flatgd.training.fingerprint import LENGTH, TOLD, differences
from flatgd.training.optimizers import switch

MANIFEST = "manifest.json"
SAVING = ".saving"
STATE = "trainer_state.json"
CHECKPOINTS_KEPT = 2  # the last good one stays until the next is proven

logger = logging.getLogger(__name__)


class VerifiedCheckpoints:
    """Put before a Trainer: how it saves, and from what it goes on."""

    args: Any
    state: Any
    accelerator: Any
    model: Any
    _is_saving = False

    def fingerprint(self) -> dict[str, Any]:
        """What must be the same where a training goes on; by name, JSON."""
        return {}

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's; True is the newest good checkpoint in `output_dir`, and must be there."""
        found = None
        if resume_from_checkpoint is True:
            found = self._last_good()
            if found is None:
                folder = self.args.output_dir
                raise CheckpointError(f"{folder}: no checkpoint to go on from; train anew")
        elif resume_from_checkpoint:
            found = Path(resume_from_checkpoint)
            if fault := fault_of(found):
                raise CheckpointError(f"{found}: {fault}; go on from another, or train anew")
        return self._train_from(found, *args, **kwargs)

    def resume_or_train(self) -> Path | None:
        """Train from the newest good checkpoint in `output_dir`, which is returned, or, where there
        is none, from the beginning."""
        found = self._last_good()
        self._train_from(found)
        return found

    def _last_good(self) -> Path | None:
        return distributed.of_first(lambda: last_good(Path(self.args.output_dir)))

    def _train_from(self, checkpoint: Path | None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's training, from a checkpoint that is known to be whole."""
        if checkpoint:
            refuse_partial(checkpoint, self.args.process_index, self.accelerator.num_processes)
            compare(checkpoint, self.fingerprint())
            if self.args.ignore_data_skip:
                logger.warning(
                    "%s: ignore_data_skip lets the rows start anew; the end is not that of a "
                    "training that was not cut off",
                    checkpoint,
                )
        resumed = str(checkpoint) if checkpoint else None
        stop = Stop(self.accelerator)
        self.add_callback(stop)  # type: ignore[attr-defined]
        try:
            with stop.listening():
                output = super().train(resumed, *args, **kwargs)  # type: ignore[misc]
        except REFUSED as error:
            if not resumed:
                raise
            line = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{resumed}: {line}; it was not written by a training, train anew"
            ) from None
        finally:
            self.remove_callback(stop)  # type: ignore[attr-defined]
        switch(self.optimizer, "eval")  # type: ignore[attr-defined]
        if stop.received:
            raise StoppedError(
                f"stopped after step {self.state.global_step}, at "
                f"{self.args.output_dir}/checkpoint-{self.state.global_step}",
                stop.received,
            )
        return output

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)  # type: ignore[misc]
        return os.path.join(folder, SAVING) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        refuse_non_finite(self.model, self.state.global_step)
        folder = Path(self._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        is_first = self.args.process_index == 0
        if is_first:
            shutil.rmtree(folder / SAVING, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        with _told(folder / SAVING, folder):
            try:
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            finally:
                self._is_saving = False
            self.accelerator.wait_for_everyone()
            self._place_best(folder, name)
            if is_first:
                seal(folder / SAVING / name, self.fingerprint())
                put(folder / SAVING / name, folder / name)
                if fault := fault_of(folder / name):
                    raise CheckpointError(f"{folder / name}: {fault}, right after it was written")
                best = Path(self.state.best_model_checkpoint or "")
                rotate(folder, self.args.save_total_limit or CHECKPOINTS_KEPT, best.name)
        self.accelerator.wait_for_everyone()

    def _place_best(self, folder: Path, name: str) -> None:
        """Have the state name the best checkpoint where it will be, not where it was written."""
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder / name)
            if self.args.should_save:
                self.state.save_to_json(str(folder / SAVING / name / STATE))

    def _load_callback_state(self) -> None:
        """Trainer's; and the best checkpoint is looked for here, where the folder may have been
        moved to."""
        if step := self.state.best_global_step:
            best = Path(self.args.output_dir) / f"checkpoint-{step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
            if self.args.load_best_model_at_end and not best.is_dir():
                raise CheckpointError(
                    f"{best}, the best checkpoint so far, is not there; put it back, or train anew"
                )
        super()._load_callback_state()  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer's; a tied weight is not in a file, and not missing."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Trainer's, from this folder, wherever it was when the checkpoint was saved."""
        switch(self.optimizer, "eval")  # type: ignore[attr-defined]
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if fault := fault_of(best):
            raise CheckpointError(f"{best}, the best checkpoint: {fault}; train anew")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()  # type: ignore[misc]


def refuse_non_finite(model: nn.Module, step: int) -> None:
    """Raises NonFiniteError rather than let weights that are NaN or infinite reach a disk."""
    bad = [name for name, parameter in model.named_parameters() if not is_finite([parameter])]
    if bad:
        raise NonFiniteError(
            f"step {step}: {len(bad)} of the model's tensors hold NaN or infinity ({bad[0]}); "
            "nothing was saved. Lower learning_rate"
        )


def seal(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Flush every file of a folder, and write down what they hold."""
    for path in folder.rglob("*"):
        sync_to_disk(path)
    record = {"fingerprint": dict(fingerprint), "files": file_digests(folder)}
    write_atomically(folder / MANIFEST, json.dumps({**record, "sha256": _digest_of_record(record)}))
    sync_to_disk(folder)


def put(beside: Path, target: Path) -> None:
    """Rename a sealed folder to its place."""
    if target.exists():
        shutil.rmtree(target)
    beside.rename(target)
    sync_to_disk(target.parent)
    shutil.rmtree(beside.parent, ignore_errors=True)


def rotate(folder: Path, kept: int, best: str = "") -> None:
    """Remove all checkpoints but the newest `kept` and the `best`."""
    for path in checkpoints(folder)[:-kept]:
        if path.name != best:
            shutil.rmtree(path)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing."""
    if not folder.is_dir():
        return "there is no such checkpoint"
    record = _record(folder)
    if record is None:
        return f"its {MANIFEST} is missing or torn"
    return integrity_error(folder, record["files"])


def last_good(folder: Path) -> Path | None:
    """The newest checkpoint that is whole. Those after it are removed, and told."""
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for path in reversed(checkpoints(folder)):
        fault = fault_of(path)
        if fault is None:
            return path
        logger.warning("%s: %s; going on from the one before", path, fault)
        shutil.rmtree(path)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """A training's checkpoints, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        told = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return record if told == _digest_of_record(record) else None


def _digest_of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def refuse_partial(checkpoint: Path, process: int, processes: int) -> None:
    """Raises CheckpointError for a checkpoint that a training cannot go on exactly from."""
    random = "rng_state.pth" if processes == 1 else f"rng_state_{process}.pth"
    wanted = {"optimizer": "optimizer*", "schedule": "scheduler.pt", "random states": random}
    missing = [what for what, pattern in wanted.items() if not any(checkpoint.glob(pattern))]
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks {', '.join(missing)}, as save_only_model leaves them out or as "
            "another number of processes wrote it; a training cannot go on exactly from it. Remove "
            "it to train anew, or load its weights as the model of a new training in another "
            "folder; save_only_model: false saves whole checkpoints"
        )


def compare(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Raises CheckpointError with what has changed since the checkpoint was saved; changes that
    leave it the same training are told."""
    found = differences((_record(checkpoint) or {}).get("fingerprint", {}), now)
    refused = "; ".join(f"{n}: {text}" for n, text in found.items() if n not in TOLD)
    if refused:
        raise CheckpointError(
            f"{checkpoint} is of another training: {refused}. Put it back, or train into another "
            "folder"
        )
    for name, text in found.items():
        what = "learning rate and warm-ups go by the new length" if name in LENGTH else "it goes on"
        logger.warning(
            "%s: %s %s; %s, and the end need not be that of a training that was not cut off",
            *(checkpoint, name, text, what),
        )


@contextmanager
def _told(saving: Path, folder: Path) -> Iterator[None]:
    """A disk that is full, or fails, in a clear message; what was half written is removed."""
    try:
        yield
    except FlatGDError:
        raise
    except Exception as error:  # torch, safetensors and tokenizers each raise their own
        shutil.rmtree(saving, ignore_errors=True)
        good = checkpoints(folder)
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written ({error}); "
            f"{shutil.disk_usage(folder).free / 2**20:,.0f} MB are free there. "
            + (f"{good[-1].name} stays; " if good else "")
            + "make room and start again: the training goes on"
        ) from None
