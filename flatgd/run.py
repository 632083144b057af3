"""The main job: experts, methods, generations, scores, report; each part once, each resumable.

    experts/{clean,toxic}     methods/NAME          checkpoints that plain transformers loads
    generations/NAME.jsonl                          sampled replies to test histories
    judges/NAME/                                    the reporting judges and their quality
    scores/NAME.jsonl                               toxicity, likelihoods, diversity
    report/                                         summary.json, tables.md, index.html, figures/

NAME of a model is `backbone`, `clean_expert`, `toxic_expert` or a method of the recipe.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

from flatgd.check import EXPERTS, check, training_config
from flatgd.data.mixture import answerable, scorable, to_answer
from flatgd.errors import RecipeError, UnsupportedError
from flatgd.evaluation.diversity import distinct, tokenize
from flatgd.evaluation.generate import generate_replies
from flatgd.evaluation.hf_judge import HFJudge
from flatgd.evaluation.judge import Judge, judge_report, pairs_of
from flatgd.evaluation.likelihood import score_replies
from flatgd.evaluation.linear_judge import LinearJudge, train_judge
from flatgd.families import Family, family_of
from flatgd.methods import METHODS, Clean
from flatgd.models import load_config, load_model, load_tokenizer
from flatgd.progress import Display
from flatgd.recipe import JudgeSettings, Recipe
from flatgd.records import Dialogue, read_jsonl, write_jsonl
from flatgd.report.trained import SETTINGS
from flatgd.stages import Stages, key_of
from flatgd.training.train import steps_of, train

Row = dict[str, Any]
MODEL_FILES = (".safetensors", ".json", ".txt", ".jinja", ".model")


class Run:
    """One recipe at work in its output folder."""

    def __init__(self, recipe: Recipe, display: Display | None = None):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.recipe = recipe
        self.display = display or Display()
        self.root = recipe.output
        self.sets = check(recipe)
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
        self.stages = Stages(self.root)
        self._key_of_model = cache(model_key)

    def all(self) -> Path:
        """The whole job; returns the report's page."""
        for label, text in self.sets.described():
            self.display.line(label, text)
        self.judge()
        self.experts()
        for name in self.recipe.methods:
            self.train(name)
        for name in self.recipe.models:
            self.generate(name)
        for name in self.recipe.models:
            self.score(name)
        return self.report()

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

    def _folder(self, name: str) -> str:
        return self.recipe.backbone if name == "backbone" else str(self.root / self._place(name))

    def _overrides(self, name: str) -> dict[str, Any]:
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
        limit, seed = self.recipe.generate.histories, self.recipe.seed
        parts = [[r for r in rows if r.source == name] for name in {r.source: None for r in rows}]
        return [row for part in parts for row in answerable(part, limit, seed)]

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
            write_jsonl(path, (_generation(row, answers) for row, answers in rows))
            return f"{len(self.histories):,} histories x {settings.samples} replies"

        key = key_of("generate", self._training_key(name), self._generation_key)
        self._produce(f"generations/{name}.jsonl", key, build)

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
            rows = self.sets.judge
            judge: LinearJudge | HFJudge
            if settings.kind == "linear":
                judge = train_judge(rows, settings.false_positive_rate)
                about = f"linear, trained on {len(rows):,} labelled replies"
            else:
                judge = HFJudge.load(settings)
                judge.calibrate(rows)
                about = f"{settings.model}, its threshold set on {len(rows):,} labelled replies"
            judge.save(folder)
            report = {"name": settings.label, **judge_report(judge, about, self.sets.test)}
            (folder / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
            return about

        return build

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
            labelled = scorable(self.sets.test)
            model, family = self._model(self._folder(name))
            replies = sum(len(row["replies"]) for row in generations)
            total = len(labelled) + (replies if self.recipe.scorer else 0)
            with self.display.bar(f"{name}: score", total) as advance:
                likelihoods = score_replies(model, family, labelled, progress=advance)
                rows = self._score_replies("generated", generations, advance)
            rows += [
                {
                    "kind": "labelled",
                    "dataset": row.source,
                    "conversation": row.conversation,
                    "context": key_of(row.history),
                    "is_safe": bool(row.is_safe),
                    "nll": score.nll,
                    "tokens": score.tokens,
                }
                for row, score in zip(labelled, likelihoods, strict=True)
            ]
            write_jsonl(path, rows)
            return f"{replies:,} replies judged, {len(labelled):,} labelled replies scored"

        key = key_of(self._training_key(name), self._generation_key, self._scoring_key)
        self._produce(f"scores/{name}.jsonl", key, build)

    def _score_reference(self) -> None:
        """The test sets' own safe replies under judge and scorer: the yardstick."""

        def build(path: Path) -> str:
            safe = [r for r in scorable(self.sets.test) if r.is_safe and r.history]
            answered = {row.source for row in self.histories}
            rows = [_generation(r, [r.reply]) for r in safe if r.source in answered]
            with self.display.bar("reference: score", len(rows)) as advance:
                write_jsonl(path, self._score_replies("reference", rows, advance))
            return f"{len(rows):,} safe test replies"

        key = key_of("reference", _digest(self.histories), self._scoring_key)
        self._produce("scores/reference.jsonl", key, build)

    @cached_property
    def _scoring_key(self) -> str:
        scorer = self.recipe.scorer and self._key_of_model(self.recipe.scorer)
        judges = [self._judge_key(settings) for settings in self.recipe.judges]
        return key_of("score", judges, scorer, self._layout, _digest(self.sets.test))

    def _score_replies(
        self, kind: str, generations: Sequence[Row], advance: Callable[[int], None]
    ) -> list[Row]:
        """One score row a history: each reply's P(toxic), length, likelihood under the scorer."""
        flat = [
            Dialogue(
                tuple(row["history"]),
                reply,
                None,
                row["dataset"],
                row["conversation"],
                system=row["system"],
            )
            for row in generations
            for reply in row["replies"]
        ]
        pairs = pairs_of(flat)
        toxic = {name: iter(judge.score(pairs).tolist()) for name, judge in self._judges.items()}
        likelihoods = None
        if self.recipe.scorer:
            likelihoods = iter(score_replies(*self._scorer, flat, progress=advance))
        rows = []
        for row in generations:
            replies = row["replies"]
            scored = [next(likelihoods) for _ in replies] if likelihoods else []
            rows.append(
                {
                    "kind": kind,
                    "dataset": row["dataset"],
                    "conversation": row["conversation"],
                    "toxic": {
                        name: [round(next(chances), 6) for _ in replies]
                        for name, chances in toxic.items()
                    },
                    "words": [len(tokenize(reply)) for reply in replies],
                    "div1": distinct(replies, 1),
                    "div2": distinct(replies, 2),
                    "nll": [round(score.nll, 5) for score in scored],
                    "tokens": [score.tokens for score in scored],
                }
            )
        return rows

    @cached_property
    def _judges(self) -> dict[str, Judge]:
        judges: dict[str, Judge] = {}
        for settings in self.recipe.judges:
            folder = self.root / f"judges/{settings.label}"
            linear = settings.kind == "linear"
            judge = LinearJudge.load(folder) if linear else HFJudge.load(settings, folder)
            judges[settings.label] = judge
        return judges

    @cached_property
    def _scorer(self) -> tuple[Any, Family]:
        assert self.recipe.scorer is not None
        return self._model(self.recipe.scorer, self._layout[:2])

    def _model(self, name: str, layout: tuple[Any, ...] | None = None) -> tuple[Any, Family]:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        family = family_of(load_config(name), load_tokenizer(name), *(layout or self._layout))
        return load_model(name).to(device), family  # type: ignore[arg-type]

    def report(self) -> Path:
        """Tables, figures and page from the files of the run."""
        from flatgd.report.build import build_report

        page = build_report(self.recipe)
        self.display.line("report", str(page))
        return page

    # Plumbing

    def _produce(self, place: str, key: str, build: Callable[[Path], str]) -> None:
        told: list[str] = []
        if self.stages.is_outdated(place, key):
            self.display.line(place, "something it rests on has changed: made anew")
        begun = time.monotonic()
        outcome = self.stages.produce(place, key, lambda path: told.append(build(path)))
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


def _generation(row: Dialogue, replies: list[str]) -> Row:
    return {
        "dataset": row.source,
        "conversation": row.conversation,
        "system": row.system,
        "history": list(row.history),
        "replies": replies,
    }
