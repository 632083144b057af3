"""The judges of a run: those that report, and the one in the loop, which never does."""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import torch

from flatgd.artifacts import layout
from flatgd.artifacts.store import fingerprint_of
from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.judges.base import Judge
from flatgd.judges.quality import judge_report
from flatgd.judges.registry import cuts_taken, load_judge, make_judge
from flatgd.models.dtype import dtype_name, unless_float32
from flatgd.pipeline.context import BuildResult, Context
from flatgd.pipeline.plan import rows_digest


class JudgeStage:
    """Trains or calibrates each judge once."""

    def __init__(self, context: Context):
        self.context = context

    def build(self) -> None:
        """The reporting judges, and how they agree with the human labels of the test sets."""
        sets = self.context.sets
        for settings in self.context.recipe.judges:
            build = self._builder(settings, sets.judge, sets.test)
            self.context.build(layout.judge(settings.label), self.fingerprint(settings), build)

    def build_in_loop(self) -> None:
        """The judge that labels sampled replies for training."""
        plan, settings = self.context.plan, self.context.recipe.sample.judge
        build = self._builder(settings, self.context.sets.policy)
        self.context.build(layout.IN_LOOP_JUDGE, plan.in_loop_fingerprint(), build)

    def fingerprint(self, settings: JudgeSettings) -> str:
        """A digest of everything that a reporting judge depends on."""
        model = settings.model and self.context.model_fingerprint(settings.model)
        rows = rows_digest(self.context.sets.judge), rows_digest(self.context.sets.test)
        other = unless_float32(self.dtype(settings))
        return fingerprint_of(settings.model_dump(exclude={"model"}), model, *rows, *other)

    def dtype(self, settings: JudgeSettings) -> torch.dtype:
        """The precision of a judge's model."""
        return self.context.plan.judge_dtype(settings)

    @property
    def features(self) -> Path:
        """Where embedding judges keep their encoders' features."""
        return self.context.root / layout.FEATURES

    @cached_property
    def loaded(self) -> dict[str, Judge]:
        """The reporting judges by label, ready to score."""
        root = self.context.root
        return {
            settings.label: load_judge(
                settings, root / layout.judge(settings.label), self.dtype(settings), self.features
            )
            for settings in self.context.recipe.judges
        }

    def load_in_loop(self) -> Judge:
        folder = self.context.root / layout.IN_LOOP_JUDGE
        settings = self.context.recipe.sample.judge
        return load_judge(settings, folder, self.dtype(settings), self.features)

    def _builder(
        self, settings: JudgeSettings, rows: list[Dialogue], test: list[Dialogue] | None = None
    ) -> Callable[[Path], BuildResult]:
        """Builds a judge from `rows`; with `test`, also writes its agreement with those labels."""

        def build(folder: Path) -> BuildResult:
            begun = time.perf_counter()
            with self._building_bar(settings, len(rows)) as advance:
                given = self.dtype(settings), self.features
                judge, about = make_judge(settings, rows, folder, advance, *given)
            cost = {
                "seconds": time.perf_counter() - begun,
                "dtype": dtype_name(self.dtype(settings)),
            }
            if test is not None:
                rate, labelled = (
                    settings.false_positive_rate,
                    sum(r.is_safe is not None for r in test),
                )
                with self._bar(settings, labelled, "test replies") as advance:
                    report = judge_report(judge, about, test, rate, advance)
                report = {"name": settings.label, **report}
                quality = folder / Path(layout.judge_quality(settings.label)).name
                quality.write_text(json.dumps(report, indent=2) + "\n")
            return BuildResult(about + cuts_taken({settings.label: judge}), cost)

        return build

    def _building_bar(
        self, settings: JudgeSettings, rows: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        if settings.kind != "trained":
            return self._bar(settings, rows, "replies")
        from flatgd.judges.trained import tuning_steps

        return self._bar(settings, tuning_steps(rows, settings), "steps")

    def _bar(
        self, settings: JudgeSettings, total: int, unit: str
    ) -> AbstractContextManager[Callable[[int], None]]:
        if settings.kind == "linear":  # takes seconds
            return nullcontext(lambda count: None)
        return self.context.display.bar(f"judge {settings.label}", total, unit)
