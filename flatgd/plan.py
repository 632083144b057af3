"""What each model of a recipe is made of: its kind, what it starts from, its rows, and its key.

NAME of a model is `backbone`, `clean_expert`, `toxic_expert` or an entry of the recipe's `methods`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from flatgd.check import training_config
from flatgd.data.mixture import Sets, answerable, to_answer
from flatgd.data.sampled import contrasting_pairs, judged_replies
from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError
from flatgd.methods import METHODS, Clean, Merge, Method, System
from flatgd.recipe import EXPERTS, Recipe, place_of
from flatgd.records import read_jsonl
from flatgd.stages import key_of
from flatgd.training import FlatGDConfig
from flatgd.training.train import steps_of

DRAW = 0
Rows = Sequence[Dialogue | tuple[Dialogue, Dialogue]]


def answered(recipe: Recipe, sets: Sets) -> list[Dialogue]:
    """The test rows whose histories the models answer; which ones does not hang on the seed."""
    rows = to_answer(sets.test, recipe.data.test)
    every = recipe.generate.histories
    limits = {source.name: source.histories or every for source in recipe.data.test}
    parts = {name: [r for r in rows if r.source == name] for name in {r.source for r in rows}}
    drawn = {name: answerable(part, limits[name], DRAW) for name, part in parts.items()}
    return [row for name in limits for row in drawn.get(name, [])]


class Plan:
    """The models of one recipe on its data. `key_of_model` digests a folder or hub model."""

    def __init__(self, recipe: Recipe, sets: Sets, key_of_model: Callable[[str], str]):
        self.recipe, self.sets, self._key_of_model = recipe, sets, key_of_model
        self._keys: dict[str, str] = {}

    def kind(self, name: str) -> type[System]:
        return Clean if name in EXPERTS else METHODS[self.recipe.kind_of(name)]

    def folder(self, name: str) -> Path:
        return self.recipe.output / place_of(name)

    def path(self, name: str) -> str:
        """Where it is loaded from."""
        return self.recipe.backbone if name == "backbone" else str(self.folder(name))

    def start(self, name: str) -> str:
        """The model it goes on from, or speaks with."""
        return "backbone" if name in EXPERTS else self.recipe.start_of(name)

    def base(self, name: str) -> str:
        """Where that model is loaded from."""
        start = self.start(name)
        return self.recipe.base_of(name) if start == "backbone" else self.path(start)

    def sampled_from(self, name: str) -> str | None:
        """The model whose replies it learns from, beside the data's."""
        if name in EXPERTS:
            return None
        kind = self.kind(name)
        learns_from_pairs = issubclass(kind, Method) and kind.learns_from == "pairs"
        return self.recipe.sampled_from(name) or ("backbone" if learns_from_pairs else None)

    def models(self, name: str) -> list[str]:
        """The models that must be there before it: what its kind needs, and where it starts."""
        names = [*self.kind(name).needs, self.start(name)]
        return [n for n in dict.fromkeys(names) if n != "backbone"]

    def own_weights(self, name: str) -> bool:
        """Whether a checkpoint of its own is loaded, not that of the model it speaks with."""
        return name == "backbone" or issubclass(self.kind(name), Method | Merge)

    def config(self, name: str, output: Path) -> FlatGDConfig:
        return training_config(self.recipe, self.recipe.overrides(name), output, self.kind(name))

    def steps(self, name: str) -> int:
        """How many optimizer steps a model is trained for."""
        return steps_of(self.config(name, self.recipe.output), len(self.rows(name)))

    def rows(self, name: str) -> Rows:
        """What it is trained on; needs the sampled replies on disk where it learns from them."""
        rows, source = self._given(name), self.sampled_from(name)
        if source is None:
            return rows
        sampled = list(read_jsonl(self.recipe.output / self.sample_place(source)))
        kind = self.kind(name)
        in_pairs = issubclass(kind, Method) and kind.learns_from == "pairs"
        found: Rows = (
            contrasting_pairs(sampled) if in_pairs else judged_replies(sampled, self.recipe.seed)
        )
        if not found:
            raise RecipeError(
                f"{name}: {source} gave no safe and toxic replies to learn from"
                f"{' to one history' if in_pairs else ''}, as judged in the loop; raise "
                "sample.histories or sample.samples"
            )
        return [*rows, *found]

    def _given(self, name: str) -> list[Dialogue]:
        return self._of_use(name, self.sets.policy)

    def _of_use(self, name: str, rows: Sequence[Dialogue]) -> list[Dialogue]:
        """Those that a model's kind learns from: safe ones, toxic ones, or both."""
        if name == "toxic_expert":
            return [row for row in rows if not row.is_safe]
        kind = self.kind(name)
        takes_toxic = issubclass(kind, Method) and kind.trains_on_toxic
        if name == "clean_expert" or not takes_toxic:
            return [row for row in rows if row.is_safe]
        return list(rows)

    def eval_rows(self, name: str) -> list[Dialogue] | None:
        """What it is evaluated on while it is trained, of the labels that it learns from."""
        if not self.recipe.evaluates(self.recipe.overrides(name)):
            return None
        return self._of_use(name, self.sets.eval)

    def key(self, name: str) -> str:
        """What the model depends on; `clean` and the clean expert can be one piece of work."""
        if name not in self._keys:
            self._keys[name] = self._key(name)
        return self._keys[name]

    def _key(self, name: str) -> str:
        if name == "backbone":
            return self._key_of_model(self.recipe.backbone)
        kind, start, source = self.kind(name), self.start(name), self.sampled_from(name)
        evaluated = self.eval_rows(name) if issubclass(kind, Method) else None
        base = self._key_of_model(self.base(name)) if start == "backbone" else self.key(start)
        return key_of(
            "train",
            kind.name,
            base,
            [self.key(n) for n in kind.needs],
            digest(self._given(name)) if issubclass(kind, Method) else None,
            self.recipe.training_fields(self.recipe.overrides(name)),
            [self.recipe.seed, *self.layout],
            source and self.sample_key(source),
            *([] if evaluated is None else [digest(evaluated)]),
        )

    # Sampled replies

    def sample_place(self, name: str) -> str:
        return f"sampled/{name}.jsonl"

    def sample_histories(self) -> list[Dialogue]:
        """The policy's histories that are answered."""
        return answerable(self.sets.policy, self.recipe.sample.histories, self.recipe.seed)

    def sample_key(self, name: str) -> str:
        generate = self.recipe.generate.model_dump(exclude={"histories", "samples"})
        sample = self.recipe.sample.model_dump(mode="json", exclude={"judge": {"model"}})
        settings = [sample, generate, self.recipe.seed]
        return key_of("sample", self.key(name), self.in_loop_key(), settings, self.layout)

    def in_loop_key(self) -> str:
        """What the judge in the loop depends on."""
        judge = self.recipe.sample.judge
        model = judge.model and self._key_of_model(judge.model)
        return key_of(
            "in_loop", judge.model_dump(exclude={"model"}), model, digest(self.sets.policy)
        )

    @property
    def layout(self) -> tuple[Any, ...]:
        """How a dialogue becomes the models' input."""
        return self.recipe.layout


def digest(rows: Iterable[Dialogue]) -> str:
    return key_of([dataclasses.astuple(dataclasses.replace(row, where="")) for row in rows])
