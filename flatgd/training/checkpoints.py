"""Checkpoints of a training: each is complete or absent, and verified before it is used.

    checkpoint-40/                Trainer's own files: weights, optimizer, scheduler, random states
    checkpoint-40/manifest.json   a format number, each file's size and SHA-256, and the training's
                                  fingerprint

A checkpoint is written in `.saving/`, flushed, given its manifest, renamed, and read back. Only
then is the oldest one removed. A resume takes the newest checkpoint whose files match its manifest
and warns about the others.
"""

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
from flatgd.io.files import (
    file_digests,
    free_bytes,
    integrity_error,
    read_sealed,
    sync_to_disk,
    write_sealed,
)
from flatgd.models.trust import REFUSED
from flatgd.runtime import distributed
from flatgd.training.callbacks import Stop
from flatgd.training.optimizers import switch
from flatgd.training.resume_fingerprint import LENGTH, REPORTED, differences

MANIFEST = "manifest.json"
FORMAT = 1  # of manifests; a checkpoint with another number is refused
SAVING = ".saving"
STATE = "trainer_state.json"
CHECKPOINTS_KEPT = 2  # the last good one stays until the next one is verified

RESTART = "train from the beginning"

logger = logging.getLogger(__name__)


class VerifiedCheckpoints:
    """List it before a Trainer. Checkpoints are verified when written and when resumed from."""

    args: Any
    state: Any
    accelerator: Any
    model: Any
    _is_saving = False

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a checkpoint and the training that resumes from it: JSON
        values by name."""
        return {}

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's method. True resumes from the newest good checkpoint in `output_dir`; raises
        CheckpointError if there is none, or if the named one is corrupted."""
        found = None
        if resume_from_checkpoint is True:
            found = self._last_good()
            if found is None:
                folder = self.args.output_dir
                raise CheckpointError(f"{folder}: no checkpoint to resume from; {RESTART}")
        elif resume_from_checkpoint:
            found = Path(resume_from_checkpoint)
            if fault := fault_of(found):
                raise CheckpointError(f"{found}: {fault}; resume from another, or {RESTART}")
        return self._train_from(found, *args, **kwargs)

    def resume_or_train(self) -> Path | None:
        """Resume from the newest good checkpoint in `output_dir` and return it; if there is none,
        train from the beginning and return None."""
        found = self._last_good()
        self._train_from(found)
        return found

    def _last_good(self) -> Path | None:
        return distributed.of_first(lambda: last_good(Path(self.args.output_dir)))

    def _train_from(self, checkpoint: Path | None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's training, from a checkpoint that was verified."""
        if checkpoint:
            refuse_partial(checkpoint, self.args.process_index, self.accelerator.num_processes)
            compare(checkpoint, self.fingerprint())
            if self.args.ignore_data_skip:
                logger.warning(
                    "%s: with ignore_data_skip the rows start over, so the result differs from "
                    "that of an uninterrupted training",
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
                f"{resumed}: {line}; no training of flatgd wrote this file, so {RESTART}"
            ) from None
        finally:
            self.remove_callback(stop)  # type: ignore[attr-defined]
        switch(self.optimizer, "eval")  # type: ignore[attr-defined]
        if stop.received:
            raise StoppedError(
                f"stopped after step {self.state.global_step}; the checkpoint is "
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
        with _write_errors(folder / SAVING, folder):
            try:
                super()._save_checkpoint(model, trial)  # type: ignore[misc]
            finally:
                self._is_saving = False
            self.accelerator.wait_for_everyone()
            self._place_best(folder, name)
            if is_first:
                seal(folder / SAVING / name, self.fingerprint())
                move_into_place(folder / SAVING / name, folder / name)
                if fault := fault_of(folder / name):
                    raise CheckpointError(f"{folder / name}: {fault} right after writing")
                best = Path(self.state.best_model_checkpoint or "")
                rotate(folder, self.args.save_total_limit or CHECKPOINTS_KEPT, best.name)
        self.accelerator.wait_for_everyone()

    def _place_best(self, folder: Path, name: str) -> None:
        """Make the state name the best checkpoint by its final path, not by the path in SAVING."""
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(folder / name)
            if self.args.should_save:
                self.state.save_to_json(str(folder / SAVING / name / STATE))

    def _load_callback_state(self) -> None:
        """Trainer's method; the best checkpoint is looked up in `output_dir`, which may have been
        moved since."""
        if step := self.state.best_global_step:
            best = Path(self.args.output_dir) / f"checkpoint-{step}"
            self.state.best_model_checkpoint = str(best) if best.is_dir() else None
            if self.args.load_best_model_at_end and not best.is_dir():
                raise CheckpointError(
                    f"{best}, the best checkpoint so far, is missing; restore it, or {RESTART}"
                )
        super()._load_callback_state()  # type: ignore[misc]

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer's method; files leave tied weights out, so they do not count as missing."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]

    def _load_best_model(self) -> None:
        """Trainer's method, for a folder that may have been moved since the save."""
        switch(self.optimizer, "eval")  # type: ignore[attr-defined]
        best = Path(self.args.output_dir) / f"checkpoint-{self.state.best_global_step}"
        if fault := fault_of(best):
            raise CheckpointError(f"{best}, the best checkpoint: {fault}; {RESTART}")
        self.state.best_model_checkpoint = str(best)
        super()._load_best_model()  # type: ignore[misc]


def refuse_non_finite(model: nn.Module, step: int) -> None:
    """Raise NonFiniteError if any weight is NaN or infinite, before it is saved."""
    bad = [name for name, parameter in model.named_parameters() if not is_finite([parameter])]
    if bad:
        raise NonFiniteError(
            f"step {step}: NaN or infinity in {len(bad)} of the weight tensors, first {bad[0]}; "
            "nothing was saved. Lower learning_rate"
        )


def seal(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Flush every file of a folder, then write the manifest."""
    for path in folder.rglob("*"):
        sync_to_disk(path)
    manifest = {"format": FORMAT, "fingerprint": dict(fingerprint), "files": file_digests(folder)}
    write_sealed(folder / MANIFEST, manifest)
    sync_to_disk(folder)


def move_into_place(sealed: Path, target: Path) -> None:
    """Rename a sealed folder to `target`, replacing what is there."""
    if target.exists():
        shutil.rmtree(target)
    sealed.rename(target)
    sync_to_disk(target.parent)
    shutil.rmtree(sealed.parent, ignore_errors=True)


def rotate(folder: Path, kept: int, best: str = "") -> None:
    """Remove all checkpoints but the newest `kept` and the `best`."""
    for path in checkpoints(folder)[:-kept]:
        if path.name != best:
            shutil.rmtree(path)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is intact."""
    if not folder.is_dir():
        return "there is no such checkpoint"
    manifest = read_sealed(folder / MANIFEST)
    if manifest is None:
        return f"its {MANIFEST} is missing or corrupted"
    if written := _other_format(manifest):
        return f"its {MANIFEST} has {written}, and this version of flatgd reads format {FORMAT}"
    return integrity_error(folder, manifest["files"])


def _other_format(manifest: Mapping[str, Any] | None) -> str | None:
    """The format of an intact manifest, if it is not ours."""
    if manifest is None or manifest.get("format") == FORMAT:
        return None
    return f"format {manifest['format']}" if "format" in manifest else "no format number"


def last_good(folder: Path) -> Path | None:
    """The newest intact checkpoint, or None. Newer, corrupted ones are removed with a warning.

    Raises CheckpointError for one of another format, which another version of flatgd wrote.
    """
    shutil.rmtree(folder / SAVING, ignore_errors=True)
    for path in reversed(checkpoints(folder)):
        fault = fault_of(path)
        if fault is None:
            return path
        if _other_format(read_sealed(path / MANIFEST)):
            raise CheckpointError(f"{path}: {fault}. Move it away to train without it")
        logger.warning("%s: %s; falling back to the checkpoint before it", path, fault)
        shutil.rmtree(path)
    return None


def checkpoints(folder: Path) -> list[Path]:
    """A training's checkpoints, oldest first."""
    found = [p for p in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def refuse_partial(checkpoint: Path, process: int, processes: int) -> None:
    """Raise CheckpointError if a training cannot resume exactly: `process` is this process's rank,
    `processes` their number."""
    random = "rng_state.pth" if processes == 1 else f"rng_state_{process}.pth"
    wanted = {"optimizer": "optimizer*", "schedule": "scheduler.pt", "random states": random}
    missing = [what for what, pattern in wanted.items() if not any(checkpoint.glob(pattern))]
    if missing:
        raise CheckpointError(
            f"{checkpoint} lacks {', '.join(missing)}, so a training cannot resume exactly from "
            "it. Either save_only_model left them out, or another number of processes wrote it. "
            "Delete it to train from the beginning, or load its weights as the model of a new "
            "training in another folder. save_only_model: false saves complete checkpoints"
        )


def compare(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Compare the checkpoint's fingerprint with `now`. Raise CheckpointError for a change that
    makes it another training; warn about any other change."""
    found = differences((read_sealed(checkpoint / MANIFEST) or {}).get("fingerprint", {}), now)
    refused = "; ".join(f"{n}: {text}" for n, text in found.items() if n not in REPORTED)
    if refused:
        raise CheckpointError(
            f"{checkpoint} belongs to another training: {refused}. Undo the change, or train into "
            "another folder"
        )
    for name, text in found.items():
        effect = (
            "learning rate and warm-ups follow the new length" if name in LENGTH else "resuming"
        )
        logger.warning(
            "%s: %s %s; %s. The result may differ from that of an uninterrupted training",
            *(checkpoint, name, text, effect),
        )


@contextmanager
def _write_errors(saving: Path, folder: Path) -> Iterator[None]:
    """Turn a full or failing disk into a CheckpointError, and remove the incomplete checkpoint."""
    try:
        yield
    except FlatGDError:
        raise
    except Exception as error:  # torch, safetensors and tokenizers each raise their own
        shutil.rmtree(saving, ignore_errors=True)
        good = checkpoints(folder)
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written ({error}); "
            f"{free_bytes(folder) / 2**20:,.0f} MB are free there. "
            + (f"{good[-1].name} is kept. " if good else "")
            + "Free some space and start again: the training resumes"
        ) from None
