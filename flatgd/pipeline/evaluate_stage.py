"""The evaluation of a run: replies to the test histories, judged and scored."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from flatgd.artifacts import layout
from flatgd.artifacts.rows import DriftScores, GenerationRow, ReplyScores
from flatgd.artifacts.store import fingerprint_of
from flatgd.config.names import BACKBONE, REFERENCE
from flatgd.data.behaviour import PATTERNS
from flatgd.data.sets import ordinary_dialogue, scorable
from flatgd.dialogue import Dialogue
from flatgd.io.records import read_jsonl, write_jsonl
from flatgd.judges.registry import cuts_taken
from flatgd.models.dtype import dtype_name, unless_float32
from flatgd.models.speaker import Speaker, load_speaker
from flatgd.pipeline.context import BuildResult, Context
from flatgd.pipeline.judge_stage import JudgeStage
from flatgd.pipeline.models_stage import ModelsStage
from flatgd.pipeline.plan import histories_to_answer, rows_digest
from flatgd.pipeline.scoring import drift_rows, generation_row, given_rows, reply_rows
from flatgd.runtime import distributed
from flatgd.runtime.memory_meter import peak_memory


class EvaluateStage:
    """Generates from each model and scores it once."""

    def __init__(self, context: Context, models: ModelsStage, judges: JudgeStage):
        self.context, self.models, self.judges = context, models, judges

    @cached_property
    def histories(self) -> list[Dialogue]:
        return histories_to_answer(self.context.recipe, self.context.sets)

    def generate(self, name: str) -> None:
        """Sampled replies of one model to the test histories."""
        self.models.train(name)
        context, settings = self.context, self.context.recipe.generate

        def build(path: Path) -> BuildResult:
            with peak_memory() as peak:
                speaker = context.speaker(name)
                total = len(self.histories)
                with context.display.bar(f"{name}: generate", total, "histories") as advance:
                    said = speaker.generate(self.histories, settings, context.recipe.seed, advance)
            rows = zip(self.histories, said.texts, strict=True)
            if distributed.is_first():
                write_jsonl(path, (generation_row(row, replies) for row, replies in rows))
            cost = {
                "tokens": said.tokens,
                "seconds": said.seconds,
                "models": speaker.models(),
                "weights_mb": speaker.megabytes(),
                "peak_mb": peak.megabytes,
                "dtype": dtype_name(context.plan.dtype(name)),
            }
            summary = f"{len(self.histories):,} histories x {settings.samples} replies"
            return BuildResult(summary, cost)

        context.build(
            layout.generations(name),
            fingerprint_of(
                "generate",
                context.plan.fingerprint(name),
                self._generation_fingerprint,
                *self._other_than_float32(name),
            ),
            build,
            context.artifacts_of(name),
            collective=True,
        )

    def _other_than_float32(self, name: str) -> list[str]:
        """The precision of a model that generates and scores, for fingerprints."""
        return unless_float32(self.context.plan.dtype(name))

    @cached_property
    def _scorer_dtype(self) -> torch.dtype:
        recipe = self.context.recipe
        assert recipe.scorer is not None
        return self.context.plan.dtype_of_role("scorer", recipe.scorer)

    @cached_property
    def _generation_fingerprint(self) -> str:
        recipe = self.context.recipe
        settings = recipe.generate.model_dump()
        return fingerprint_of(settings, recipe.seed, recipe.layout, rows_digest(self.histories))

    def score(self, name: str) -> None:
        """Judge and score one model's replies; score the labelled replies under it."""
        context = self.context
        needed = dict.fromkeys((name, BACKBONE) if self._ordinary else (name,))
        for other in needed:
            self.generate(other)
        self.judges.build()
        self._score_reference()

        def build(path: Path) -> BuildResult:
            generations = self._generations(name)
            ordinary = self._backbone_on_ordinary if self._ordinary else []
            given = scorable(context.sets.test) + ordinary_dialogue(context.sets.test)
            speaker = self._backbone if ordinary and name == BACKBONE else context.speaker(name)
            replies = sum(len(row["replies"]) for row in generations)
            calls = len(given) + len(ordinary) + self._scores_of(generations)
            with context.display.bar(f"{name}: score", calls, "scores") as advance:
                of_given = given_rows(speaker, given, advance)
                drift: list[DriftScores] = []
                if ordinary:
                    drift = drift_rows(self._backbone, speaker, ordinary, advance)
                rows = [*self._reply_rows("generated", generations, advance), *of_given, *drift]
            if distributed.is_first():
                write_jsonl(path, rows)
            summary = f"{replies:,} replies judged, {len(given):,} given replies scored"
            if ordinary and not drift:
                summary += ", no KL divergence: its tokens are not the backbone's"
            cost = {"dtype": dtype_name(context.plan.dtype(name))}
            if context.recipe.scorer:
                cost["scorer_dtype"] = dtype_name(self._scorer_dtype)
            return BuildResult(summary + cuts_taken(self.judges.loaded), cost)

        judges = [layout.judge(settings.label) for settings in context.recipe.judges]
        context.build(
            layout.scores(name),
            fingerprint_of(
                [context.plan.fingerprint(other) for other in needed],
                self._generation_fingerprint,
                self._scoring_fingerprint,
                *self._other_than_float32(name),
            ),
            build,
            [*context.artifacts_of(name), *map(layout.generations, needed), *judges],
            collective=True,
        )

    def _generations(self, name: str) -> list[GenerationRow]:
        return list(read_jsonl(self.context.root / layout.generations(name)))

    def _score_reference(self) -> None:
        """The test sets' own safe replies under judge and scorer, as a baseline."""
        context = self.context

        def build(path: Path) -> BuildResult:
            safe = [r for r in scorable(context.sets.test) if r.is_safe and r.history]
            safe += [r for r in ordinary_dialogue(context.sets.test) if r.history]
            answered = {row.source for row in self.histories}
            rows = [generation_row(r, [r.reply]) for r in safe if r.source in answered]
            calls = self._scores_of(rows)
            with context.display.bar("reference: score", calls, "scores") as advance:
                scored = self._reply_rows("reference", rows, advance)
            if distributed.is_first():
                write_jsonl(path, scored)
            return BuildResult(f"{len(rows):,} human replies" + cuts_taken(self.judges.loaded))

        fingerprint = fingerprint_of(
            "reference", rows_digest(self.histories), self._scoring_fingerprint
        )
        context.build(layout.scores(REFERENCE), fingerprint, build, collective=True)

    @cached_property
    def _scoring_fingerprint(self) -> str:
        context = self.context
        scorer = context.recipe.scorer and context.model_fingerprint(context.recipe.scorer)
        if scorer:
            scorer = "".join([scorer, *unless_float32(self._scorer_dtype)])
        judges = [self.judges.fingerprint(settings) for settings in context.recipe.judges]
        test = rows_digest(context.sets.test)
        return fingerprint_of("score", judges, scorer, PATTERNS, context.recipe.layout, test)

    def _reply_rows(
        self,
        kind: Literal["generated", "reference"],
        generations: Sequence[GenerationRow],
        advance: Callable[[int], None],
    ) -> list[ReplyScores]:
        scorer = self._scorer if self.context.recipe.scorer else None
        judges = self.judges.loaded
        return reply_rows(kind, generations, judges, scorer, self._ordinary, advance)

    def _scores_of(self, generations: Sequence[GenerationRow]) -> int:
        """How many scores `_reply_rows` asks the judges and the scorer for."""
        replies = [len(row["replies"]) for row in generations]
        found = len(self.context.recipe.judges) * sum(replies)
        if self.context.recipe.scorer:
            others = (row["dataset"] in self._ordinary for row in generations)
            found += sum(n * (1 + other) for n, other in zip(replies, others, strict=True))
        return found

    @cached_property
    def _ordinary(self) -> set[str]:
        """The test sets without labels."""
        return {row.source for row in ordinary_dialogue(self.context.sets.test)}

    @cached_property
    def _backbone(self) -> Speaker:
        return self.context.speaker(BACKBONE)

    @cached_property
    def _backbone_on_ordinary(self) -> list[GenerationRow]:
        """The backbone's replies to ordinary dialogue, on which distances from it are measured."""
        return [row for row in self._generations(BACKBONE) if row["dataset"] in self._ordinary]

    @cached_property
    def _scorer(self) -> Speaker:
        recipe = self.context.recipe
        assert recipe.scorer is not None
        return load_speaker(recipe.scorer, recipe.scorer_layout, self._scorer_dtype)
