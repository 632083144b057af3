"""The reporting judges of a recipe: built once, then loaded to score replies."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flatgd.config.recipe import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.judges.base import Judge, Progress, Scorer
from flatgd.judges.calibration import load_calibration, save_calibration
from flatgd.judges.classifier import HFJudge
from flatgd.judges.linear import LinearJudge, train_judge


def make_judge(
    settings: JudgeSettings,
    rows: Sequence[Dialogue],
    folder: Path,
    advance: Progress = lambda count: None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Judge, str]:
    """A judge trained or calibrated on labelled rows and saved in `folder`, and its description.

    `advance` counts steps of tuning, or rows that are scored; for a linear judge nothing. `dtype`
    is the precision of an hf judge; the others compute in float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if settings.kind == "hf":
        judge = HFJudge.load(settings, dtype).calibrated(rows, advance)
        model = str(settings.model)  # reports show it, and others have no use for a local path
        name = Path(model).name if os.path.isabs(model) else model
        about = f"{name}, calibrated on {len(rows):,} labelled replies"
    elif settings.kind == "trained":
        from flatgd.judges.trained import tune_judge

        judge = tune_judge(rows, settings, folder, advance)
        about = (
            f"a transformer from {Path(str(settings.model)).name}, tuned on four fifths of "
            f"{len(rows):,} labelled replies"
        )
    else:
        judge = train_judge(rows, settings.false_positive_rate)
        about = f"linear, trained on {len(rows):,} labelled replies"
    judge.scorer.save(folder)
    save_calibration(judge.calibration, folder)
    if judge.calibration.is_flat:
        about += "; its score does not rise with toxicity there: P(toxic) is alike for all replies"
    return judge, about


def load_judge(settings: JudgeSettings, folder: Path, dtype: torch.dtype = torch.float32) -> Judge:
    """The judge that `make_judge` saved in `folder`. Raises ModelError if there is none."""
    calibration = load_calibration(folder)
    scorer: Scorer
    if settings.kind == "hf":
        scorer = HFJudge.load(settings, dtype)
    elif settings.kind == "trained":
        from flatgd.judges.trained import TrainedJudge

        scorer = TrainedJudge.load(settings, folder)
    else:
        scorer = LinearJudge.load(folder)
    return Judge(scorer, calibration)


def cuts_taken(judges: Mapping[str, Any]) -> str:
    """How many inputs since the last call were too long, for each judge that counts them."""
    counts = {n: judge.cuts for n, judge in judges.items() if hasattr(judge, "cuts")}
    summaries = {name: cuts.take_summary() for name, cuts in counts.items()}
    return "".join(f"; judge {name}: {text}" for name, text in summaries.items() if text)
