"""One training, from a backbone's name to a folder that plain transformers loads."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.trainer_callback import ProgressCallback

from flatgd.artifacts import layout
from flatgd.io.records import write_jsonl
from flatgd.methods import Method
from flatgd.models.adapters import save, with_adapter
from flatgd.models.encoded_rows import RowEncoder
from flatgd.runtime import distributed
from flatgd.runtime.callbacks import Advance
from flatgd.runtime.memory_meter import peak_memory
from flatgd.training.checkpoints import checkpoints, refuse_non_finite
from flatgd.training.config import FlatGDConfig
from flatgd.training.optimizers import weights_for_use
from flatgd.training.trainer import FlatGDTrainer


class _Snapshots(TrainerCallback):
    """Saves the weights at `count` evenly spaced steps before the last, as `path/STEP`."""

    def __init__(self, trainer: FlatGDTrainer, folder: Path, count: int):
        self.trainer, self.folder, self.count = trainer, folder, count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        parts = self.count + 1
        due = {round(state.max_steps * place / parts) for place in range(1, parts)}
        if state.global_step in due:
            with weights_for_use(self.trainer.optimizer):
                weights = gathered_weights(self.trainer)
                if state.is_world_process_zero:
                    save(self.trainer.model, self.folder / "path" / str(state.global_step), weights)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Any],
    config: FlatGDConfig,
    method: Method,
    is_toxic: bool = False,
    advance: Callable[[int], None] = lambda count: None,
    eval_rows: Sequence[Any] | None = None,
    encoder: RowEncoder | None = None,
) -> tuple[str, dict[str, Any]]:
    """Train into `config.output_dir`, resuming from its last intact checkpoint. Returns a line that
    says what was done, and the cost: seconds, gradient evaluations, peak memory.

    Saves config, weights or adapter, tokenizer, `training.jsonl` with the figures of each logged
    step, and, if it evaluates, `evaluation.jsonl` with those of each evaluation.
    """
    folder = Path(config.output_dir or ".")
    if is_toxic:
        model.config.flatgd_role = "toxic expert: never to be published or deployed"
    trained: Any = with_adapter(model, config) if config.lora_rank else model
    trainer = FlatGDTrainer(
        trained,
        config,
        train_dataset=rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        method=method,
        encoder=encoder,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Advance(advance))
    if config.snapshots:
        trainer.add_callback(_Snapshots(trainer, folder, config.snapshots))
    with peak_memory() as peak:
        checkpoint = trainer.resume_or_train()
    refuse_non_finite(trained, trainer.state.global_step)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = gathered_weights(trainer)
    if distributed.is_first():
        method.finish(trained, folder)
        save(trained, folder, weights)
        tokenizer.save_pretrained(folder)
        write_jsonl(folder / layout.TRAINING_LOG, log)
        if trainer.eval_dataset:
            evaluations = [e for e in trainer.state.log_history if "eval_loss" in e]
            write_jsonl(folder / layout.EVALUATION_LOG, evaluations)
        for path in checkpoints(folder):
            shutil.rmtree(path)
    summary = _summary(trainer, len(rows), checkpoint)
    return summary, _cost(log, trainer.state.global_step, peak.megabytes)


def _summary(trainer: FlatGDTrainer, rows: int, checkpoint: Path | None) -> str:
    """What was done, in one line."""
    cut, (evaluated, evaluated_cut) = trainer.truncated(), trainer.evaluated()
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return (
        f"{trainer.state.global_step} steps on {rows:,} replies"
        + (f", {cut:,} of them cut to length" if cut else "")
        + "".join(f", {count:,} with {note}" for note, count in trainer.notes().items())
        + (f", evaluated on {evaluated:,} replies" if evaluated else "")
        + (f", {evaluated_cut:,} of them cut to length" if evaluated_cut else "")
        + (f", the weights of step {best}, the best" if best else "")
        + (f", from checkpoint {checkpoint.name}" if checkpoint else "")
    )


def gathered_weights(trainer: FlatGDTrainer) -> dict[str, Any] | None:
    """The full state of a model whose weights are sharded over processes, on the first of them;
    None if they are not sharded. All processes must call it."""
    if not trainer.accelerator.is_fsdp2:
        return None
    state: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model)
    tied = getattr(trainer.model, "all_tied_weights_keys", {})
    return {name: tensor for name, tensor in state.items() if name not in tied}


def _cost(log: Sequence[dict[str, Any]], steps: int, megabytes: float | None) -> dict[str, Any]:
    """The cost of the whole training, interruptions included, from the log. An entry covers one
    step, or the mean of several with larger logging_steps."""
    spans = [entry["step"] - before for entry, before in zip(log, _before(log), strict=True)]
    total = {
        figure: sum(entry[figure] * span for entry, span in zip(log, spans, strict=True))
        * (steps / sum(spans))
        for figure in ("seconds", "gradient_evaluations")
        if log
    }
    return {**total, "peak_mb": megabytes}


def _before(log: Sequence[dict[str, Any]]) -> list[int]:
    """The step at which each entry's mean begins."""
    return [0, *(entry["step"] for entry in log)][: len(log)]


def steps_of(config: FlatGDConfig, rows: int) -> int:
    """The number of optimizer steps of a training on `rows` rows."""
    if config.max_steps > 0:
        return int(config.max_steps)
    batch = config.per_device_train_batch_size * distributed.count()
    return math.ceil(math.ceil(rows / batch) * config.num_train_epochs)
