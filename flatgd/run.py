"""The main job: experts, methods, generations, scores, report; each part once, each resumable.

    experts/{clean,toxic}     methods/NAME          checkpoints that plain transformers loads
    generations/NAME.jsonl                          sampled replies to test histories
    judges/NAME/                                    the reporting judges and their quality
    scores/NAME.jsonl                               toxicity, likelihoods, diversity
    report/                                         summary.json, tables.md, index.html, figures/
    seeds/SEED/  generalisation/WHAT/               the same for other seeds, other policy data

NAME of a model is `backbone`, `clean_expert`, `toxic_expert` or a method of the recipe.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from flatgd.check import EXPERTS, check, training_config
from flatgd.data.mixture import Sets, answerable, ordinary, scorable, to_answer
from flatgd.errors import RecipeError, UnsupportedError
from flatgd.evaluation.generate import generate_replies
from flatgd.evaluation.judge import Judge, judge_report
from flatgd.evaluation.judges import load_judge, make_judge
from flatgd.evaluation.score import Scorer, generation_row, given_rows, reply_rows
from flatgd.families import Family, family_of
from flatgd.methods import METHODS, Clean
from flatgd.models import load_config, load_model, load_tokenizer
from flatgd.progress import Display
from flatgd.recipe import JudgeSettings, Recipe
from flatgd.recipe_file import as_text
from flatgd.records import Dialogue, read_jsonl, write_jsonl
from flatgd.report.trained import SETTINGS
from flatgd.stages import Stages, key_of
from flatgd.training.train import steps_of, train

Row = dict[str, Any]
MODEL_FILES = (".safetensors", ".json", ".txt", ".jinja", ".model")
RECIPE = "recipe.json"  # in a run's folder, so that a checkpoint can be traced to its run
DRAW = 0  # which histories are answered does not hang on the seed


class Run:
    """One recipe at work in its output folder.

    `sets` and `parent` are those of a variant: a run of its own below another one's folder, on
    other policy data or with another seed, which takes from its parent whatever is the same work.
    """

    stages: Stages
    _key_of_model: Callable[[str], str]

    def __init__(
        self,
        recipe: Recipe,
        display: Display | None = None,
        sets: Sets | None = None,
        parent: "Run | None" = None,
    ):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.recipe = recipe
        self.display = display or Display()
        self.root = recipe.output
        self.sets = sets or check(recipe)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UnsupportedError(
                "a run is one process; for several, use FlatGDTrainer under accelerate launch"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"output {self.root}: {error.strerror}; name another folder"
            ) from None
        self.stages = Stages(self.root, parent.stages if parent else None)
        self._key_of_model = parent._key_of_model if parent else cache(model_key)
        self._is_whole = sets is None or parent is None or sets.policy is parent.sets.policy

    def all(self) -> Path:
        """The whole job; returns the report's page."""
        for label, text in self.sets.described():
            self.display.line(label, text)
        self.scores()
        for seed in range(self.recipe.seed + 1, self.recipe.seed + self.recipe.seeds):
            self.display.line("seed", str(seed))
            self.variant(f"seeds/{seed}", seed=seed).scores()
        return self.report()

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

    # Training

    def experts(self) -> None:
        for name in EXPERTS:
            self.train(name)

    def train(self, name: str) -> None:
        """One expert or method, with the experts it needs."""
        self._known(name)
        if name == "backbone":
            return
        if name not in EXPERTS and METHODS[name].needs_experts:
            self.experts()

        def build(folder: Path) -> str:
            rows = self._rows(name)
            config = training_config(self.recipe, self._overrides(name), folder)
            method = METHODS.get(name, Clean)
            experts = [load_model(self._folder(e)) for e in EXPERTS] if method.needs_experts else []
            with self.display.bar(name, steps_of(config, len(rows))) as advance:
                base = self.recipe.base_of(name)
                told = train(base, rows, config, method, experts, name, advance)
            settings = self.recipe.settings(self._overrides(name))
            (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
            return told

        self._produce(self._place(name), self._training_key(name), build)

    def _place(self, name: str) -> str:
        return f"experts/{EXPERTS[name]}" if name in EXPERTS else f"methods/{name}"

    def folder_of(self, name: str) -> Path:
        """Where a model's checkpoint lies."""
        return self.root / self._place(name)

    def steps(self, name: str) -> int:
        """How many optimizer steps a model was trained for."""
        config = training_config(self.recipe, self._overrides(name), self.root)
        return steps_of(config, len(self._rows(name)))

    def model_of(self, name: str) -> tuple[Any, Family]:
        """A trained model, and how it reads a dialogue."""
        self._known(name)
        return self._model(self._folder(name))

    def _folder(self, name: str) -> str:
        return self.recipe.backbone if name == "backbone" else str(self.folder_of(name))

    def _overrides(self, name: str) -> dict[str, Any]:
        if name == "toxic_expert":
            return {**self.recipe.experts, "snapshots": 0}  # of no use, and to be kept in one place
        return self.recipe.experts if name in EXPERTS else self.recipe.methods[name] or {}

    def _rows(self, name: str) -> list[Dialogue]:
        if name == "toxic_expert":
            return [row for row in self.sets.policy if not row.is_safe]
        if name == "clean_expert" or not METHODS[name].trains_on_toxic:
            return [row for row in self.sets.policy if row.is_safe]
        return self.sets.policy

    def _training_key(self, name: str) -> str:
        """What the checkpoint depends on; `clean` and the clean expert can be one piece of work."""
        if name == "backbone":
            return self._key_of_model(self.recipe.backbone)
        method = METHODS.get(name, Clean)
        return key_of(
            "train",
            method.name,
            self._key_of_model(self.recipe.base_of(name)),
            _digest(self._rows(name)),
            self.recipe.training_fields(self._overrides(name)),
            [self.recipe.seed, *self._layout],
            [self._training_key(e) for e in EXPERTS] if method.needs_experts else [],
        )

    # Evaluation

    @cached_property
    def histories(self) -> list[Dialogue]:
        rows = to_answer(self.sets.test, self.recipe.data.test)
        every = self.recipe.generate.histories
        limits = {source.name: source.histories or every for source in self.recipe.data.test}
        parts = {name: [r for r in rows if r.source == name] for name in {r.source for r in rows}}
        drawn = {name: answerable(part, limits[name], DRAW) for name, part in parts.items()}
        return [row for name in limits for row in drawn.get(name, [])]

    def generate(self, name: str) -> None:
        """Sampled replies of one model to the test histories."""
        self.train(name)
        settings = self.recipe.generate

        def build(path: Path) -> str:
            model, family = self._model(self._folder(name))
            with self.display.bar(f"{name}: generate", len(self.histories)) as advance:
                replies = generate_replies(
                    model, family, self.histories, settings, self.recipe.seed, advance
                )
            rows = zip(self.histories, replies, strict=True)
            write_jsonl(path, (generation_row(row, answers) for row, answers in rows))
            return f"{len(self.histories):,} histories x {settings.samples} replies"

        key = key_of("generate", self._training_key(name), self._generation_key)
        self._produce(f"generations/{name}.jsonl", key, build, self._checkpoint(name))

    @cached_property
    def _generation_key(self) -> str:
        settings = self.recipe.generate.model_dump()
        return key_of(settings, self.recipe.seed, self._layout, _digest(self.histories))

    @property
    def _layout(self) -> tuple[int, int, str | None]:
        """How a dialogue becomes the models' input."""
        recipe = self.recipe
        return recipe.max_history_tokens, recipe.max_reply_tokens, recipe.turn_separator

    def judge(self) -> None:
        """The reporting judges, and how they agree with the human labels of the test sets."""
        for settings in self.recipe.judges:
            place = f"judges/{settings.label}"
            self._produce(place, self._judge_key(settings), self._judge_builder(settings))

    def _judge_builder(self, settings: JudgeSettings) -> Callable[[Path], str]:
        def build(folder: Path) -> str:
            rows, rate = self.sets.judge, settings.false_positive_rate
            with self._judge_bar(settings) as advance:
                judge, about = make_judge(settings, rows, folder, advance)
            report = judge_report(judge, about, self.sets.test, rate)
            report = {"name": settings.label, **report}
            (folder / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
            return about

        return build

    def _judge_bar(self, settings: JudgeSettings) -> AbstractContextManager[Callable[[int], None]]:
        if settings.kind != "trained":
            return nullcontext(lambda steps: None)
        from flatgd.evaluation.trained_judge import tuning_steps

        steps = tuning_steps(len(self.sets.judge), settings)
        return self.display.bar(f"judge {settings.label}", steps)

    def _judge_key(self, settings: JudgeSettings) -> str:
        model = settings.model and self._key_of_model(settings.model)
        rows = _digest(self.sets.judge), _digest(self.sets.test)
        return key_of(settings.model_dump(), model, *rows)

    def score(self, name: str) -> None:
        """Judge and score one model's replies; score labelled replies under it."""
        self.generate(name)
        self.judge()
        self._score_reference()

        def build(path: Path) -> str:
            generations = list(read_jsonl(self.root / f"generations/{name}.jsonl"))
            given = scorable(self.sets.test) + ordinary(self.sets.test)
            model, family = self._model(self._folder(name))
            replies = sum(len(row["replies"]) for row in generations)
            with self.display.bar(f"{name}: score", len(given) + self._calls(generations)) as step:
                rows = given_rows(model, family, given, step)
                rows = self._reply_rows("generated", generations, step) + rows
            write_jsonl(path, rows)
            return f"{replies:,} replies judged, {len(given):,} given replies scored"

        key = key_of(self._training_key(name), self._generation_key, self._scoring_key)
        judges = [f"judges/{settings.label}" for settings in self.recipe.judges]
        on = [*self._checkpoint(name), f"generations/{name}.jsonl", *judges]
        self._produce(f"scores/{name}.jsonl", key, build, on)

    def _checkpoint(self, name: str) -> list[str]:
        return [] if name == "backbone" else [self._place(name)]

    def _score_reference(self) -> None:
        """The test sets' own safe replies under judge and scorer: the yardstick."""

        def build(path: Path) -> str:
            safe = [r for r in scorable(self.sets.test) if r.is_safe and r.history]
            safe += [r for r in ordinary(self.sets.test) if r.history]
            answered = {row.source for row in self.histories}
            rows = [generation_row(r, [r.reply]) for r in safe if r.source in answered]
            with self.display.bar("reference: score", self._calls(rows)) as advance:
                write_jsonl(path, self._reply_rows("reference", rows, advance))
            return f"{len(rows):,} human replies"

        key = key_of("reference", _digest(self.histories), self._scoring_key)
        self._produce("scores/reference.jsonl", key, build)

    @cached_property
    def _scoring_key(self) -> str:
        scorer = self.recipe.scorer and self._key_of_model(self.recipe.scorer)
        judges = [self._judge_key(settings) for settings in self.recipe.judges]
        return key_of("score", judges, scorer, self._layout, _digest(self.sets.test))

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
    def _scorer(self) -> Scorer:
        assert self.recipe.scorer is not None
        return Scorer(*self._model(self.recipe.scorer, self._layout[:2]))

    def _model(self, name: str, layout: tuple[Any, ...] | None = None) -> tuple[Any, Family]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        family = family_of(load_config(name), load_tokenizer(name), *(layout or self._layout))
        return load_model(name).to(device), family  # type: ignore[arg-type]

    def report(self) -> Path:
        """Tables, figures and page from the files of the run."""
        from flatgd.hub import write_cards
        from flatgd.report.build import build_report

        page = build_report(self.recipe)
        (self.root / RECIPE).write_text(as_text(self.recipe))
        write_cards(self.recipe)
        self.display.line("report", str(page))
        return page

    def keys(self, names: Sequence[str]) -> dict[str, str | None]:
        """What the trained methods stand for: a study is of these checkpoints and no others."""
        return {self._place(name): self.stages.key(self._place(name)) for name in names}

    # Plumbing

    def _produce(
        self, place: str, key: str, build: Callable[[Path], str], on: Sequence[str] = ()
    ) -> None:
        told: list[str] = []
        if self.stages.is_outdated(place, key):
            self.display.line(place, "something it rests on has changed: made anew")
        begun = time.monotonic()
        outcome = self.stages.produce(place, key, lambda path: told.append(build(path)), on)
        if outcome != "kept" and self._is_whole:
            (self.root / RECIPE).write_text(as_text(self.recipe))
        if outcome == "built":
            self.display.line(place, f"{told[0]} ({time.monotonic() - begun:.0f} s)")
        elif outcome == "reused":
            self.display.line(place, "the same work as before, reused")

    def _known(self, name: str) -> None:
        if name not in self.recipe.models:
            raise RecipeError(f"no {name!r} in this recipe; it has {', '.join(self.recipe.models)}")


def model_key(name: str) -> str:
    """A digest of a model folder's files; of a hub model, its name and commit."""
    folder = Path(name)
    if not folder.is_dir():
        return key_of(name, getattr(load_config(name), "_commit_hash", None))
    files = sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES)
    return key_of([(p.name, _file_digest(p)) for p in files])


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(rows: Sequence[Dialogue]) -> str:
    return key_of([dataclasses.astuple(row) for row in rows])
