"""The main job: experts, methods, generations, scores, report; each part once, each resumable.

    experts/  methods/  sampled/                    the models, see making.py
    generations/NAME.jsonl                          sampled replies to test histories
    judges/NAME/                                    the reporting judges and their quality
    scores/NAME.jsonl                               toxicity, likelihoods, diversity
    report/                                         summary.json, tables.md, index.html, figures/
    seeds/SEED/  generalisation/WHAT/               the same for other seeds, other policy data

NAME of a model is `backbone`, `clean_expert`, `toxic_expert` or an entry of the recipe's `methods`.
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from flatgd import processes
from flatgd.behaviour import PATTERNS
from flatgd.check import training_example
from flatgd.cost import peak_memory
from flatgd.data.mixture import ordinary, scorable
from flatgd.dialogue import Dialogue
from flatgd.evaluation.judge import Judge
from flatgd.evaluation.judges import cuts_taken, load_judge
from flatgd.evaluation.score import generation_row, given_rows, reply_rows
from flatgd.evaluation.speaker import Speaker
from flatgd.files import write_whole
from flatgd.making import RECIPE, Done, Making, Row
from flatgd.plan import answered, digest
from flatgd.recipe import JudgeSettings, place_of
from flatgd.recipe_file import as_text, changes
from flatgd.records import read_jsonl, write_jsonl
from flatgd.stages import key_of


class Run(Making):
    """A recipe from data to report."""

    def all(self) -> Path:
        """The whole job; returns the report's page."""
        for label, text in self.sets.described():
            self.display.line(label, text)
        if processes.is_first():
            if self.sets.rejected:
                write_jsonl(self.root / "rejected.jsonl", (p._asdict() for p in self.sets.rejected))
            self.display.line("training example, target in [ ]", self.example())
            self._tell_changes()
        self.scores()
        for seed in range(self.recipe.seed + 1, self.recipe.seed + self.recipe.seeds):
            self.display.line("seed", str(seed))
            self.variant(f"seeds/{seed}", seed=seed).scores()
        return self.report()

    def example(self) -> str:
        """A training example as the backbone reads it, its target in brackets."""
        family, read = training_example(self.recipe, self.sets.policy)
        texts = family.tokenizer.batch_decode([read.history_ids, read.reply_ids])
        return f"{texts[0]}[{texts[1]}]".replace("\n", "\\n")

    def _tell_changes(self) -> None:
        """What the recipe says now that it did not say when this folder was last worked in."""
        kept, now = self.root / ".stages/recipe", as_text(self.recipe)
        if kept.exists():
            for line in changes(json.loads(kept.read_text()), json.loads(now)):
                self.display.line("changed", f"{line}; what hangs on it is made anew")
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, now)

    def scores(self) -> None:
        """Everything but the report, of one seed."""
        self.judge()
        self.experts()
        for name in self.recipe.methods:
            self.train(name)
        for name in self.recipe.models:
            self.generate(name)
        for name in self.recipe.models:
            self.score(name)

    def variant(
        self, place: str, seed: int | None = None, policy: list[Dialogue] | None = None
    ) -> "Run":
        """A run at `place` below this one's folder, one thing changed."""
        changed = {"output": self.root / place, "seed": self.recipe.seed if seed is None else seed}
        recipe = self.recipe.model_copy(update={**changed, "seeds": 1})
        sets = self.sets if policy is None else self.sets._replace(policy=policy)
        return Run(recipe, self.display, sets, self)

    @cached_property
    def histories(self) -> list[Dialogue]:
        return answered(self.recipe, self.sets)

    def generate(self, name: str) -> None:
        """Sampled replies of one model to the test histories."""
        self.train(name)
        settings = self.recipe.generate

        def build(path: Path) -> Done:
            with peak_memory() as peak:
                speaker = self._speaker(name)
                with self.display.bar(f"{name}: generate", len(self.histories)) as advance:
                    said = speaker.generate(self.histories, settings, self.recipe.seed, advance)
            rows = zip(self.histories, said.texts, strict=True)
            if processes.is_first():
                write_jsonl(path, (generation_row(row, answers) for row, answers in rows))
            cost = {
                "tokens": said.tokens,
                "seconds": said.seconds,
                "models": speaker.models(),
                "weights_mb": speaker.megabytes(),
                "peak_mb": peak.megabytes,
            }
            return Done(f"{len(self.histories):,} histories x {settings.samples} replies", cost)

        key = key_of("generate", self.plan.key(name), self._generation_key)
        self._produce(f"generations/{name}.jsonl", key, build, self._made(name), together=True)

    @cached_property
    def _generation_key(self) -> str:
        settings = self.recipe.generate.model_dump()
        return key_of(settings, self.recipe.seed, self.plan.layout, digest(self.histories))

    def judge(self) -> None:
        """The reporting judges, and how they agree with the human labels of the test sets."""
        sets = self.sets
        for settings in self.recipe.judges:
            place = f"judges/{settings.label}"
            self._produce(
                place,
                self._judge_key(settings),
                self._judge_builder(settings, sets.judge, sets.test),
            )

    def _judge_key(self, settings: JudgeSettings) -> str:
        model = settings.model and self._key_of_model(settings.model)
        rows = digest(self.sets.judge), digest(self.sets.test)
        return key_of(settings.model_dump(exclude={"model"}), model, *rows)

    def score(self, name: str) -> None:
        """Judge and score one model's replies; score labelled replies under it."""
        self.generate(name)
        self.judge()
        self._score_reference()

        def build(path: Path) -> Done:
            generations = list(read_jsonl(self.root / f"generations/{name}.jsonl"))
            given = scorable(self.sets.test) + ordinary(self.sets.test)
            speaker = self._speaker(name)
            replies = sum(len(row["replies"]) for row in generations)
            with self.display.bar(f"{name}: score", len(given) + self._calls(generations)) as step:
                rows = given_rows(speaker, given, step)
                rows = self._reply_rows("generated", generations, step) + rows
            if processes.is_first():
                write_jsonl(path, rows)
            told = f"{replies:,} replies judged, {len(given):,} given replies scored"
            return Done(told + cuts_taken(self._judges))

        key = key_of(self.plan.key(name), self._generation_key, self._scoring_key)
        judges = [f"judges/{settings.label}" for settings in self.recipe.judges]
        on = [*self._made(name), f"generations/{name}.jsonl", *judges]
        self._produce(f"scores/{name}.jsonl", key, build, on, together=True)

    def _score_reference(self) -> None:
        """The test sets' own safe replies under judge and scorer: the yardstick."""

        def build(path: Path) -> Done:
            safe = [r for r in scorable(self.sets.test) if r.is_safe and r.history]
            safe += [r for r in ordinary(self.sets.test) if r.history]
            answered = {row.source for row in self.histories}
            rows = [generation_row(r, [r.reply]) for r in safe if r.source in answered]
            with self.display.bar("reference: score", self._calls(rows)) as advance:
                scored = self._reply_rows("reference", rows, advance)
            if processes.is_first():
                write_jsonl(path, scored)
            return Done(f"{len(rows):,} human replies" + cuts_taken(self._judges))

        key = key_of("reference", digest(self.histories), self._scoring_key)
        self._produce("scores/reference.jsonl", key, build, together=True)

    @cached_property
    def _scoring_key(self) -> str:
        scorer = self.recipe.scorer and self._key_of_model(self.recipe.scorer)
        judges = [self._judge_key(settings) for settings in self.recipe.judges]
        scorers = judges, scorer, PATTERNS
        return key_of("score", *scorers, self.plan.layout, digest(self.sets.test))

    def _reply_rows(
        self, kind: str, generations: Sequence[Row], advance: Callable[[int], None]
    ) -> list[Row]:
        scorer = self._scorer if self.recipe.scorer else None
        return reply_rows(kind, generations, self._judges, scorer, self._ordinary, advance)

    def _calls(self, generations: Sequence[Row]) -> int:
        """How many likelihoods `_reply_rows` asks the scorer for."""
        if not self.recipe.scorer:
            return 0
        return sum(len(g["replies"]) * (1 + (g["dataset"] in self._ordinary)) for g in generations)

    @cached_property
    def _ordinary(self) -> set[str]:
        """The test sets without labels."""
        return {row.source for row in ordinary(self.sets.test)}

    @cached_property
    def _judges(self) -> dict[str, Judge]:
        return {
            settings.label: load_judge(settings, self.root / f"judges/{settings.label}")
            for settings in self.recipe.judges
        }

    @cached_property
    def _scorer(self) -> Speaker:
        assert self.recipe.scorer is not None
        return Speaker(
            *self._model(self.recipe.scorer, (*self.plan.layout[:2], None, *self.plan.layout[3:]))
        )

    def report(self) -> Path:
        """Tables, figures and page from the files of the run."""
        from flatgd.hub import write_cards
        from flatgd.report.build import build_report

        if not processes.is_first():
            return self.root / "report/index.html"
        page = build_report(self.recipe)
        (self.root / RECIPE).write_text(as_text(self.recipe))
        write_cards(self.recipe)
        self.display.line("report", str(page))
        return page

    def keys(self, names: Sequence[str]) -> dict[str, str | None]:
        """What the trained methods stand for: a study is of these checkpoints and no others."""
        return {place_of(name): self.stages.key(place_of(name)) for name in names}
