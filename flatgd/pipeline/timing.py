"""How long each stage of a recipe takes, from a few timed steps and batches on this machine.

The backbone's weights stand in for every model, because time does not depend on their values.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PrinterCallback

from flatgd.config.names import BACKBONE, EXPERTS
from flatgd.data.sets import ordinary_dialogue, scorable
from flatgd.dialogue import Dialogue
from flatgd.judges.base import pairs_of
from flatgd.judges.registry import reader_of
from flatgd.methods import Method
from flatgd.models.adapters import load, with_adapter
from flatgd.models.loading import load_tokenizer, on_device, quiet_transformers
from flatgd.models.speaker import load_speaker
from flatgd.pipeline.plan import Plan, histories_to_answer
from flatgd.training.config import FlatGDConfig
from flatgd.training.loop import steps_of
from flatgd.training.penalty_choice import RHOS
from flatgd.training.trainer import FlatGDTrainer

SEARCH = 0.3 * (1 + 2 * len(RHOS))  # steps: it takes so many gradients of the penalised part
STEPS = 2  # timed, after one that also allocates memory
HISTORIES = 16  # answered at once, on a CPU; on a GPU one whole batch
REPLIES = 64


class StageTime(NamedTuple):
    """The expected seconds of a stage, and what was timed."""

    stage: str
    seconds: float
    basis: str


def times_of(plan: Plan) -> Iterator[StageTime]:
    """One stage after another, as they are timed. Downloads and the report are left out."""
    quiet_transformers()
    recipe = plan.recipe
    seen: dict[str, float] = {}
    for name in (*EXPERTS, *recipe.methods):
        planned = plan.model(name)
        if not issubclass(planned.kind, Method) or planned.learns_from_pairs:
            continue
        config = plan.config(name, recipe.output)
        rows = plan.data_rows(name)
        key = str((planned.kind, planned.base, planned.options))
        if key not in seen:
            seen[key] = _step(plan, name, planned.kind, rows)
        steps = steps_of(config, len(rows))
        search = SEARCH if planned.kind.is_flat and _searches(config) else 0.0
        basis = f"{steps:,} steps of {seen[key]:.2f} s" + (", and rho" if search else "")
        yield StageTime(name, (steps + search) * seen[key], basis)
    yield from _evaluation(plan)


def total(stages: Sequence[StageTime]) -> float:
    return sum(stage.seconds for stage in stages)


def _step(plan: Plan, name: str, kind: type[Method], rows: Sequence[Dialogue]) -> float:
    """Seconds of a training step with its penalty."""
    planned = plan.model(name)
    model = load(planned.base, plan.base_dtype(name))
    with tempfile.TemporaryDirectory() as folder:
        config = plan.config(name, Path(folder))
        config = _short(config, Path(folder))
        needed = {n: on_device(load(plan.recipe.backbone, plan.dtype(n))) for n in kind.needs}
        method = kind.build(needed, config, planned.options)
        batch = config.per_device_train_batch_size
        trainer = FlatGDTrainer(
            with_adapter(model, config) if config.lora_rank else model,
            config,
            train_dataset=[rows[n % len(rows)] for n in range(config.max_steps * batch)],
            processing_class=load_tokenizer(planned.base),
            method=method,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    steps = [e for e in trainer.state.log_history if "seconds" in e][1:]
    every = (kind.is_flat and config.penalty_every) or 1
    between = [e["seconds"] for e in steps[1:] if e["gradient_evaluations"] == 1]
    if every == 1 or not between:
        return sum(float(e["seconds"]) for e in steps) / len(steps)
    return over_the_training(steps[0]["seconds"], sum(between) / len(between), every)


def over_the_training(computing: float, between: float, every: int) -> float:
    """The mean time of a training's steps, of which every n-th computes its penalty, or refreshes
    what later steps use.

    >>> over_the_training(3.0, 1.0, 8)
    1.25
    """
    return (computing + (every - 1) * between) / every


def _short(config: FlatGDConfig, folder: Path) -> FlatGDConfig:
    """The configuration for a few steps that leave nothing outside of `folder`."""
    settings: dict[str, Any] = {
        "max_steps": STEPS + 1, "save_strategy": "no", "eval_strategy": "no", "logging_steps": 1,
        "penalty_warmup": 0.0, "snapshots": 0, "report_to": [],
        "expert_cache": str(folder / "states") if config.expert_cache else None,
        "load_best_model_at_end": False, "early_stopping_patience": None,
    }  # fmt: skip
    if (config.penalty_every or 1) > 1:  # the second step computes the penalty, the fourth at the
        settings["max_steps"] = 4  # latest uses it again
    for key, value in settings.items():
        setattr(config, key, value)
    if _searches(config):
        config.rho = RHOS[1]  # the search for it happens once
    return config


def _searches(config: FlatGDConfig) -> bool:
    """Whether a penalty's first step looks for its rho."""
    is_difference = config.flatness_method in ("auto", "finite_difference") and not config.bf16
    return is_difference and not config.rho


def _evaluation(plan: Plan) -> Iterator[StageTime]:
    recipe, sets = plan.recipe, plan.sets
    histories = histories_to_answer(recipe, sets)
    models, samples = len(recipe.models), recipe.generate.samples
    speaker = load_speaker(recipe.backbone, recipe.layout, plan.dtype(BACKBONE))
    on_cpu = speaker.model.device.type == "cpu"
    few = histories[: HISTORIES if on_cpu else recipe.generate.batch_size]
    seconds, said = _timed(lambda: speaker.generate(few, recipe.generate, recipe.seed))
    whole = models * len(histories) / len(few) * seconds
    yield StageTime("generation", whole, f"{models} x {len(histories):,} histories")
    given = [*scorable(sets.test), *ordinary_dialogue(sets.test)]
    seconds, _ = _timed(lambda: speaker.score(given[:REPLIES]))
    whole = models * len(given) / min(REPLIES, len(given)) * seconds
    replies = [
        replace(row, reply=reply) for row, own in zip(few, said.texts, strict=True) for reply in own
    ]
    basis = f"{models} x {len(given):,} given replies"
    if recipe.scorer:
        dtype = plan.dtype_of_role("scorer", recipe.scorer)
        scorer = load_speaker(recipe.scorer, recipe.scorer_layout, dtype)
        seconds, _ = _timed(lambda: scorer.score(replies))
        ordinary = {row.source for row in ordinary_dialogue(sets.test)}
        times = sum(1 + (row.source in ordinary) for row in histories)
        whole += models * times / len(few) * seconds
        basis += f", {models * times * samples:,} replies under the scorer"
    yield StageTime("scoring", whole, basis)
    for judge in recipe.judges:
        if judge.kind in ("hf", "guard", "embedding"):
            read = reader_of(judge, plan.judge_dtype(judge))
            seconds, _ = _timed(lambda own=read: own(pairs_of(replies)))
            count = models * len(histories) * samples + len(sets.judge) + len(sets.test)
            whole = count / len(replies) * seconds
            yield StageTime(f"judge {judge.label}", whole, f"{count:,} replies")


def _timed(work: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def duration(seconds: float) -> str:
    """Seconds as text: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
