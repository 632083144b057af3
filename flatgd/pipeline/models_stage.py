"""The models of a run: experts and methods, and replies sampled from them to learn from."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flatgd.artifacts import layout
from flatgd.artifacts.rows import GenerationRow, SampledRow
from flatgd.config.names import BACKBONE, EXPERTS
from flatgd.io.records import write_jsonl
from flatgd.judges.base import pairs_of
from flatgd.judges.registry import cuts_taken
from flatgd.methods import Checkpoint, Merge, Method
from flatgd.models.adapters import load
from flatgd.models.loading import load_tokenizer
from flatgd.models.speaker import Speaker
from flatgd.pipeline.context import BuildResult, Context
from flatgd.pipeline.judge_stage import JudgeStage
from flatgd.pipeline.plan import PlannedModel
from flatgd.pipeline.scoring import as_dialogues, generation_row
from flatgd.runtime import distributed
from flatgd.runtime.collector import untouched
from flatgd.training.loop import steps_of, train


class ModelsStage:
    """Builds each model once, and first the models it needs."""

    def __init__(self, context: Context, judges: JudgeStage):
        self.context, self.judges = context, judges

    def experts(self) -> None:
        for name in EXPERTS:
            self.train(name)

    def train(self, name: str) -> None:
        """Build one model: train it, merge it, or record what it decodes with."""
        plan = self.context.plan
        planned = plan.model(name)
        if name == BACKBONE:
            return
        for needed in planned.needs:
            self.train(needed)
        depends_on = [layout.model(needed) for needed in planned.needs]
        for source in plan.learns_from(name):
            self.sample(source)
            depends_on.append(layout.samples(source))

        def build(folder: Path) -> BuildResult:
            folder.mkdir(parents=True, exist_ok=True)
            if distributed.is_first():
                self._write_settings(planned, folder)
            if issubclass(planned.kind, Method):
                with untouched():  # the rows, which stay
                    return self._train(planned, planned.kind, folder)
            if issubclass(planned.kind, Merge):
                return self._merge(planned, planned.kind, folder)
            if planned.kind is Checkpoint:
                return BuildResult(f"{planned.path}, as it is")
            return BuildResult(f"{', '.join(planned.needs)}, while decoding")

        self.context.build(
            layout.model(name),
            plan.fingerprint(name),
            build,
            depends_on,
            collective=issubclass(planned.kind, Method),
        )

    def _write_settings(self, planned: PlannedModel, folder: Path) -> None:
        """What the recipe says, and what the method changes in it."""
        settings = self.context.recipe.settings(planned.name)
        if issubclass(planned.kind, Method):
            used = planned.kind.preset(settings, planned.options)
            changed = {k: used.get(k) for k in settings | used if settings.get(k) != used.get(k)}
            settings = settings | ({layout.PRESET: changed} if changed else {})
        (folder / layout.SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    def _train(self, planned: PlannedModel, kind: type[Method], folder: Path) -> BuildResult:
        plan, name = self.context.plan, planned.name
        config, rows = plan.config(name, folder), plan.rows(name)
        model = load(planned.base, plan.base_dtype(name))
        tokenizer = load_tokenizer(planned.base)
        # the method alone holds the experts, so that cached states free their memory
        method = kind.build(
            self.context.load_needed(name, model if config.lora_rank else None),
            config,
            planned.options,
        )
        is_toxic = name == "toxic_expert"
        held_out, encoder = plan.eval_rows(name), self.context.encoder
        with self.context.display.bar(name, steps_of(config, len(rows)), "steps") as advance:
            return BuildResult(
                *train(model, tokenizer, rows, config, method, is_toxic, advance, held_out, encoder)
            )

    def _merge(self, planned: PlannedModel, kind: type[Merge], folder: Path) -> BuildResult:
        model = load(planned.base)
        kind.build(self.context.load_needed(planned.name), None, planned.options).merge(model)
        model.save_pretrained(folder)
        load_tokenizer(planned.base).save_pretrained(folder)
        parts = dict.fromkeys([planned.start, *kind.needs])
        return BuildResult(f"merged from {', '.join(parts)}")

    def sample(self, name: str) -> None:
        """A model's replies to the policy's histories, labelled by the judge in the loop."""
        self.train(name)
        self.judges.build_in_loop()
        context, settings = self.context, self.context.recipe.sample

        def build(path: Path) -> BuildResult:
            histories = context.plan.sample_histories()
            generate = context.recipe.sample_settings
            speaker = context.speaker(name)
            begun = time.perf_counter()
            with context.display.bar(f"{name}: sample", len(histories), "histories") as advance:
                replies = speaker.generate(histories, generate, context.recipe.seed, advance).texts
            rows = [generation_row(row, said) for row, said in zip(histories, replies, strict=True)]
            total = 2 * sum(len(row["replies"]) for row in rows)
            with context.display.bar(f"{name}: label", total, "scores") as advance:
                labelled, cut = self._label(rows, speaker, advance)
            if distributed.is_first():
                write_jsonl(path, labelled)
            labels = Counter(label for row in labelled for label in row["toxic"])
            summary = (
                f"{len(rows):,} histories x {settings.samples} replies: {labels[False]:,} judged "
                f"safe, {labels[True]:,} toxic; {labels[None]:,} left out, the judge is unsure"
            )
            return BuildResult(summary + cut, {"seconds": time.perf_counter() - begun})

        context.build(
            layout.samples(name),
            context.plan.sample_fingerprint(name),
            build,
            [layout.IN_LOOP_JUDGE, *context.artifacts_of(name)],
            collective=True,
        )

    def _label(
        self, rows: list[GenerationRow], speaker: Speaker, advance: Callable[[int], None]
    ) -> tuple[list[SampledRow], str]:
        """The rows with each reply's P(toxic), label and likelihood; and what the judge cut."""
        judge = self.judges.load_in_loop()
        flat = as_dialogues(rows)
        probabilities = iter(judge.score(pairs_of(flat), advance).tolist())
        nll = iter(round(found.nll, 4) for found in speaker.score(flat, advance))
        labelled: list[SampledRow] = []
        for row in rows:
            own = [round(next(probabilities), 6) for _ in row["replies"]]
            labelled.append(
                {
                    **row,
                    "probabilities": own,
                    "toxic": [judge.calibration.label(probability) for probability in own],
                    "nll": [next(nll) for _ in row["replies"]],
                }
            )
        return labelled, cuts_taken({self.context.recipe.sample.judge.label: judge})
