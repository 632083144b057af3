"""The reporting judges of a recipe: built once, then loaded to score replies."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.judges.base import Judge, Progress, Scorer, pairs_of
from flatgd.judges.calibration import CHECK_LABELS, calibrate, load_calibration, save_calibration
from flatgd.judges.classifier import HFJudge, check_judge, head_remedy
from flatgd.judges.guard import GuardJudge, check_guard
from flatgd.judges.linear import LinearJudge, train_judge
from flatgd.judges.reading import Pair


def make_judge(
    settings: JudgeSettings,
    rows: Sequence[Dialogue],
    folder: Path,
    advance: Progress = lambda count: None,
    dtype: torch.dtype = torch.float32,
    features: Path | None = None,
) -> tuple[Judge, str]:
    """A judge trained or calibrated on labelled rows and saved in `folder`, and its description.

    `advance` counts steps of tuning, or rows that are scored; for a linear judge nothing. `dtype`
    is the precision of its model, in a trained judge that of the passes. `features` is the folder
    where an embedding judge keeps its encoder's features.
    """
    folder.mkdir(parents=True, exist_ok=True)
    labelled = f"{len(rows):,} labelled replies"
    name = _model_name(settings)
    if settings.kind == "linear":
        judge = train_judge(rows, settings.false_positive_rate)
        about = f"linear, trained on {labelled}"
    elif settings.kind == "embedding":
        from flatgd.judges.embedding import train_head

        judge = train_head(rows, settings, dtype, features, advance)
        about = f"a linear head over {name}, trained on {labelled}"
    elif settings.kind == "trained":
        from flatgd.judges.trained import tune_judge

        judge = tune_judge(rows, settings, folder, advance, dtype)
        about = f"a transformer from {name}, tuned on four fifths of {labelled}"
    else:
        judge, remark = _calibrated(settings, rows, advance, dtype)
        about = f"{name}, calibrated on {labelled}" + (f"; {remark}" if remark else "")
    judge.scorer.save(folder)
    save_calibration(judge.calibration, folder)
    if judge.calibration.is_flat:
        about += "; its score does not rise with toxicity there: P(toxic) is alike for all replies"
    return judge, about


def _calibrated(
    settings: JudgeSettings, rows: Sequence[Dialogue], advance: Progress, dtype: torch.dtype
) -> tuple[Judge, str]:
    """A ready model, calibrated, and what is wrong with its answers."""
    scorer = load_scorer(settings, Path(), dtype)
    scores = scorer.score(pairs_of(rows), advance)
    if isinstance(scorer, GuardJudge):
        remedy, remark = CHECK_LABELS, scorer.remark
    else:
        remedy, remark = head_remedy(settings), ""
    return Judge(scorer, calibrate(scores, rows, settings.false_positive_rate, remedy)), remark


def _model_name(settings: JudgeSettings) -> str:
    """The hub name, or the name of the folder: reports show it, and have no use for a path."""
    model = str(settings.model)
    return Path(model).name if os.path.isabs(model) else model


def load_judge(
    settings: JudgeSettings,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    features: Path | None = None,
) -> Judge:
    """The judge that `make_judge` saved in `folder`. Raises ModelError if there is none."""
    calibration = load_calibration(folder)
    return Judge(load_scorer(settings, folder, dtype, features), calibration)


def load_scorer(
    settings: JudgeSettings, folder: Path, dtype: torch.dtype, features: Path | None = None
) -> Scorer:
    """The scorer of a judge. What was trained here is in `folder`."""
    if settings.kind == "hf":
        return HFJudge.load(settings, dtype)
    if settings.kind == "guard":
        return GuardJudge.load(settings, dtype)
    if settings.kind == "embedding":
        from flatgd.judges.embedding import EmbeddingJudge

        return EmbeddingJudge.load(settings, folder, dtype, features)
    if settings.kind == "trained":
        from flatgd.judges.trained import TrainedJudge

        return TrainedJudge.load(settings, folder, dtype)
    return LinearJudge.load(folder)


def reader_of(settings: JudgeSettings, dtype: torch.dtype) -> Callable[[Sequence[Pair]], Any]:
    """The costly part of judging by a model that is not tuned here, for a measurement of time."""
    if settings.kind == "embedding":
        from flatgd.judges.embedding import Encoder

        return Encoder.load(settings, dtype).features
    return load_scorer(settings, Path(), dtype).score


def check_settings(settings: JudgeSettings) -> None:
    """Raise ModelError if the judge's model does not fit its settings. Loads no weights."""
    if settings.kind == "hf":
        check_judge(settings)
    elif settings.kind == "guard":
        check_guard(settings)
    elif settings.kind == "embedding":
        from flatgd.judges.embedding import check_encoder

        check_encoder(settings)
    elif settings.kind == "trained":
        from flatgd.judges.trained import check_trained_judge

        check_trained_judge(settings)


def cuts_taken(judges: Mapping[str, Any]) -> str:
    """How many inputs since the last call were too long, for each judge that counts them."""
    counts = {n: judge.cuts for n, judge in judges.items() if hasattr(judge, "cuts")}
    summaries = {name: cuts.take_summary() for name, cuts in counts.items()}
    return "".join(f"; judge {name}: {text}" for name, text in summaries.items() if text)
