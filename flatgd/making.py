"""Every model of a recipe, made in its run's folder; each part once, each resumable.

experts/{clean,toxic}     checkpoints that plain transformers loads
methods/NAME              the same, or for a way of decoding what it is made of
sampled/NAME.jsonl        replies to the policy's histories that others learn from
sampled/judge/            what judged them: trained on the policy's rows, never reports
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import transformers
from rich.console import Console

from flatgd import processes
from flatgd.adapters import load, load_together
from flatgd.check import check
from flatgd.data.mixture import Sets
from flatgd.decoding import Guide
from flatgd.dialogue import Dialogue
from flatgd.encoding import Family
from flatgd.errors import RecipeError
from flatgd.evaluation.judge import judge_report, pairs_of
from flatgd.evaluation.judges import cuts_taken, load_judge, make_judge
from flatgd.evaluation.score import as_dialogues, generation_row
from flatgd.evaluation.speaker import Speaker
from flatgd.families import family_of
from flatgd.files import digest_of, locked
from flatgd.methods import Director, ExpertGuide, Merge, Method
from flatgd.models import load_config, load_tokenizer
from flatgd.plan import Plan
from flatgd.progress import Display
from flatgd.recipe import EXPERTS, JudgeSettings, Recipe, place_of
from flatgd.recipe_file import as_text
from flatgd.records import write_jsonl
from flatgd.report.trained import PRESET, SETTINGS
from flatgd.stages import Stages, key_of
from flatgd.training.train import steps_of, train

Row = dict[str, Any]
MODEL_FILES = (".safetensors", ".json", ".txt", ".jinja", ".model")
RECIPE = "recipe.json"  # in a run's folder, so that a checkpoint can be traced to its run
IN_LOOP = "sampled/judge"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Done(NamedTuple):
    """What was done, for the terminal, and what it cost, for the report."""

    told: str
    cost: Mapping[str, Any] = MappingProxyType({})


def on_device(model: Any) -> Any:
    return model.to(DEVICE)


def run_of(checkpoint: Path) -> Path | None:
    """The folder of the run that a checkpoint is in; it may have been moved."""
    here = checkpoint.resolve()
    return next((p for p in (here, *here.parents) if (p / RECIPE).exists()), None)


class Making:
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
        parent: "Making | None" = None,
    ):
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.recipe = recipe
        self.display = display or Display(None if processes.is_first() else Console(quiet=True))
        self.root = recipe.output
        self.sets = sets or check(recipe)
        processes.meet()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RecipeError(
                f"output {self.root}: {error.strerror}; name another folder"
            ) from None
        if parent is None and processes.is_first():
            self._lock = locked(self.root)
        self.stages = Stages(self.root, parent.stages if parent else None)
        self._key_of_model = parent._key_of_model if parent else cache(model_key)
        self.plan = Plan(recipe, self.sets, self._key_of_model)
        self._is_whole = sets is None or parent is None or sets.policy is parent.sets.policy

    def experts(self) -> None:
        for name in EXPERTS:
            self.train(name)

    def train(self, name: str) -> None:
        """Make one model, and those it needs: by training, or as its kind has it."""
        self._known(name)
        if name == "backbone":
            return
        plan = self.plan
        for needed in plan.models(name):
            self.train(needed)
        source = plan.sampled_from(name)
        if source is not None:
            self.sample(source)

        def build(folder: Path) -> Done:
            kind = plan.kind(name)
            folder.mkdir(parents=True, exist_ok=True)
            if processes.is_first():
                self._write_settings(name, folder)
            if issubclass(kind, Method):
                return self._trained(name, kind, folder)
            if issubclass(kind, Merge):
                return self._merged(name, kind, folder)
            return Done(f"{', '.join(plan.models(name))}, while decoding")

        on = [place_of(needed) for needed in plan.models(name)]
        on += [plan.sample_place(source)] if source is not None else []
        together = issubclass(plan.kind(name), Method)
        self._produce(place_of(name), plan.key(name), build, on, together)

    def _write_settings(self, name: str, folder: Path) -> None:
        """What the recipe says, and what the method makes of it."""
        settings, kind = self.recipe.settings(name), self.plan.kind(name)
        if issubclass(kind, Method):
            used = kind.preset(settings, self.recipe.overrides(name))
            changed = {k: used.get(k) for k in settings | used if settings.get(k) != used.get(k)}
            settings = settings | ({PRESET: changed} if changed else {})
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    def _trained(self, name: str, kind: type[Method], folder: Path) -> Done:
        plan = self.plan
        config, rows = plan.config(name, folder), plan.rows(name)
        model, tokenizer = load(plan.base(name)), load_tokenizer(plan.base(name))
        given = self._given_to(name, model if config.lora_rank else None)
        method = kind.build(given, config, self.recipe.overrides(name))
        with self.display.bar(name, steps_of(config, len(rows))) as advance:
            is_toxic = name == "toxic_expert"
            held_out = plan.eval_rows(name)
            return Done(*train(model, tokenizer, rows, config, method, is_toxic, advance, held_out))

    def _merged(self, name: str, kind: type[Merge], folder: Path) -> Done:
        base = self.plan.base(name)
        model = load(base)
        kind.build(self._given_to(name), None, self.recipe.overrides(name)).merge(model)
        model.save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)
        return Done(f"merged from {', '.join(dict.fromkeys([self.plan.start(name), *kind.needs]))}")

    def _given_to(self, name: str, policy: Any = None) -> dict[str, Any]:
        """The models that a system is built with, sharing what they can, also a frozen policy's."""
        paths = {needed: self.plan.path(needed) for needed in self.plan.kind(name).needs}
        return {n: on_device(model) for n, model in load_together(paths, policy).items()}

    def model_of(self, name: str) -> tuple[Any, Family]:
        """A trained model, and how it reads a dialogue."""
        self._known(name)
        return self._model(self.plan.path(name))

    # Replies to learn from

    def sample(self, name: str) -> None:
        """A model's replies to the policy's histories, judged in the loop."""
        self.train(name)
        settings = self.recipe.sample
        judge = self._judge_builder(settings.judge, self.sets.policy)
        self._produce(IN_LOOP, self.plan.in_loop_key(), judge)

        def build(path: Path) -> Done:
            histories = self.plan.sample_histories()
            generate = self.recipe.generate.model_copy(update={"samples": settings.samples})
            speaker = self._speaker(name)
            begun = time.perf_counter()
            with self.display.bar(f"{name}: sample", len(histories)) as advance:
                replies = speaker.generate(histories, generate, self.recipe.seed, advance).texts
            rows = [generation_row(row, said) for row, said in zip(histories, replies, strict=True)]
            marked, cut = self._marked(rows, speaker)
            if processes.is_first():
                write_jsonl(path, marked)
            toxic = sum(sum(row["toxic"]) for row in marked)
            told = f"{len(rows):,} histories x {settings.samples} replies, {toxic:,} judged toxic"
            told += cut
            return Done(told, {"seconds": time.perf_counter() - begun})

        on = [IN_LOOP, *self._made(name)]
        self._produce(self.plan.sample_place(name), self.plan.sample_key(name), build, on, True)

    def _marked(self, rows: list[Row], speaker: Speaker) -> tuple[list[Row], str]:
        """The rows with what the in-loop judge and the speaker say of each reply; and what the
        judge cut."""
        judge = load_judge(self.recipe.sample.judge, self.root / IN_LOOP)
        flat = as_dialogues(rows)
        chances = iter(judge.score(pairs_of(flat)).tolist())
        nll = iter(round(found.nll, 4) for found in speaker.score(flat))
        mark = judge.calibration.f1_threshold
        for row in rows:
            row["chances"] = [round(next(chances), 6) for _ in row["replies"]]
            row["toxic"] = [chance > mark for chance in row["chances"]]
            row["nll"] = [next(nll) for _ in row["replies"]]
        return rows, cuts_taken({self.recipe.sample.judge.label: judge})

    # Models at work

    def _speaker(self, name: str) -> Speaker:
        """A model of the recipe, ready to speak."""
        if name == "backbone":
            return Speaker(*self._model(self.recipe.backbone))
        plan, kind = self.plan, self.plan.kind(name)
        options = self.recipe.overrides(name)
        guide: Guide | None = None
        if issubclass(kind, ExpertGuide):
            guide = kind.build(self._given_to(name), None, options)
        elif issubclass(kind, Director):
            guide = kind.guide(plan.folder(name), options)
        path = plan.path(name) if plan.own_weights(name) else plan.base(name)
        return Speaker(*self._model(path), guide)

    def _model(self, name: str, layout: tuple[Any, ...] | None = None) -> tuple[Any, Family]:
        family = family_of(load_config(name), load_tokenizer(name), *(layout or self.plan.layout))
        return on_device(load(name)), family

    def _made(self, name: str) -> list[str]:
        """The outputs that a model's replies rest on."""
        return [] if name == "backbone" else [place_of(name)]

    def _judge_builder(
        self, settings: JudgeSettings, rows: list[Dialogue], test: list[Dialogue] | None = None
    ) -> Callable[[Path], Done]:
        """Makes a judge of `rows`; how it agrees with the labels of `test` lies beside it."""

        def build(folder: Path) -> Done:
            begun = time.perf_counter()
            with self._judge_bar(settings, len(rows)) as advance:
                judge, about = make_judge(settings, rows, folder, advance)
            cost = {"seconds": time.perf_counter() - begun}
            if test is not None:
                report = judge_report(judge, about, test, settings.false_positive_rate)
                report = {"name": settings.label, **report}
                (folder / "quality.json").write_text(json.dumps(report, indent=2) + "\n")
            return Done(about + cuts_taken({settings.label: judge}), cost)

        return build

    def _judge_bar(
        self, settings: JudgeSettings, rows: int
    ) -> AbstractContextManager[Callable[[int], None]]:
        if settings.kind != "trained":
            return nullcontext(lambda steps: None)
        from flatgd.evaluation.trained_judge import tuning_steps

        return self.display.bar(f"judge {settings.label}", tuning_steps(rows, settings))

    # Plumbing

    def _produce(
        self,
        place: str,
        key: str,
        build: Callable[[Path], Done],
        on: Sequence[str] = (),
        together: bool = False,
    ) -> None:
        done: list[Done] = []

        def make(path: Path) -> dict[str, Any]:
            done.append(build(path))
            return dict(done[0].cost)

        if processes.is_first():
            self._tell_why_anew(place, key)
        begun = time.monotonic()
        outcome = self.stages.produce(place, key, make, on, together)
        if not processes.is_first():
            return
        if outcome != "kept" and self._is_whole:
            (self.root / RECIPE).write_text(as_text(self.recipe))
        if outcome == "built":
            self.display.line(place, f"{done[0].told} ({time.monotonic() - begun:.0f} s)")
        elif outcome == "reused":
            self.display.line(place, "the same work as before, reused")

    def _tell_why_anew(self, place: str, key: str) -> None:
        if self.stages.is_outdated(place, key):
            self.display.line(place, "something it rests on has changed: made anew")
        elif fault := self.stages.harm(place):
            self.display.line(place, f"{fault}: made anew")

    def _known(self, name: str) -> None:
        if name not in self.recipe.models:
            raise RecipeError(f"no {name!r} in this recipe; it has {', '.join(self.recipe.models)}")


def model_key(name: str) -> str:
    """A digest of a model folder's files; of a hub model, its name and commit."""
    folder = Path(name)
    if not folder.is_dir():
        return key_of(name, getattr(load_config(name), "_commit_hash", None))
    files = sorted(p for p in folder.iterdir() if p.suffix in MODEL_FILES)
    return key_of([(p.name, digest_of(p)) for p in files])
