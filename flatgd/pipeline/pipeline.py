"""The stages of a run put together: judges, models, evaluation; each part once, each resumable.

Where everything goes is in artifacts/layout.py.
"""

import json
from collections.abc import Callable
from functools import partial

from flatgd.artifacts import layout
from flatgd.config.loading import as_text, changes
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets
from flatgd.dialogue import Dialogue
from flatgd.io.files import write_atomically
from flatgd.io.records import write_jsonl
from flatgd.pipeline.context import Context
from flatgd.pipeline.evaluate_stage import EvaluateStage
from flatgd.pipeline.judge_stage import JudgeStage
from flatgd.pipeline.loader import training_example
from flatgd.pipeline.models_stage import ModelsStage
from flatgd.runtime import distributed
from flatgd.runtime.display import Display
from flatgd.runtime.steps import Progress, Step


class Pipeline:
    """A recipe from data to scores. `sets` and `parent` as in Context."""

    def __init__(
        self,
        recipe: Recipe,
        display: Display | None = None,
        sets: Sets | None = None,
        parent: Context | None = None,
    ):
        self.context = Context(recipe, display, sets, parent)
        self.judges = JudgeStage(self.context)
        self.models = ModelsStage(self.context, self.judges)
        self.evaluation = EvaluateStage(self.context, self.models, self.judges)

    def run(self, on_change: Callable[[Progress], object] = lambda _: None) -> None:
        """Everything but the report, for every seed. `on_change` is told how far the run is."""
        display = self.context.display
        for label, text in self.context.sets.described():
            display.line(label, text)
        if distributed.is_first():
            if rejected := self.context.sets.rejected:
                write_jsonl(
                    self.context.root / layout.REJECTED, (problem._asdict() for problem in rejected)
                )
            display.line("training example, target in [ ]", self.example())
            self._show_changes()
        progress = Progress(self.all_steps(), on_change)
        with display.watched(progress.advanced):
            progress.run()

    def all_steps(self) -> list[Step]:
        """Everything but the report, for every seed."""
        recipe, found = self.context.recipe, self.steps()
        for seed in range(recipe.seed + 1, recipe.seed + recipe.seeds):
            found += self.variant(layout.seed(seed), seed=seed).steps(f", seed {seed}")
        return found

    def steps(self, suffix: str = "") -> list[Step]:
        """Everything but the report, for one seed. `suffix` ends the labels."""
        recipe = self.context.recipe
        train, generate, score = self.models.train, self.evaluation.generate, self.evaluation.score
        return [
            Step("judges", f"judges{suffix}", self.judges.build),
            Step("experts", f"experts{suffix}", self.models.experts),
            *(Step("training", f"train {n}{suffix}", partial(train, n)) for n in recipe.methods),
            *(Step("sampling", f"sample {n}{suffix}", partial(generate, n)) for n in recipe.models),
            *(Step("scoring", f"score {n}{suffix}", partial(score, n)) for n in recipe.models),
        ]

    def variant(
        self, folder: str, seed: int | None = None, policy: list[Dialogue] | None = None
    ) -> "Pipeline":
        """A run in `folder` below this run's, with another seed or other policy data."""
        recipe, sets = self.context.recipe, self.context.sets
        changed = {
            "output": self.context.root / folder,
            "seed": recipe.seed if seed is None else seed,
            "seeds": 1,
        }
        return Pipeline(
            recipe.model_copy(update=changed),
            self.context.display,
            sets if policy is None else sets._replace(policy=policy),
            self.context,
        )

    def example(self) -> str:
        """A training example as the backbone reads it, its target in brackets."""
        chosen, example = training_example(self.context.recipe, self.context.sets.policy)
        texts = chosen.tokenizer.batch_decode([example.history_ids, example.reply_ids])
        return f"{texts[0]}[{texts[1]}]".replace("\n", "\\n")

    def _show_changes(self) -> None:
        """What the recipe says now that it did not say when a command last worked here."""
        kept, now = self.context.root / layout.LAST_RECIPE, as_text(self.context.recipe)
        if kept.exists():
            try:
                before = json.loads(kept.read_bytes())
            except ValueError:  # unreadable counts as absent
                before = json.loads(now)
            for line in changes(before, json.loads(now)):
                self.context.display.line("changed", f"{line}; whatever depends on it is rebuilt")
        kept.parent.mkdir(exist_ok=True)
        write_atomically(kept, now)
