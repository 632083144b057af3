"""What each model of a recipe is made of: its kind, what it starts from, its rows, its fingerprint.

NAME of a model is `backbone`, `clean_expert`, `toxic_expert` or an entry of the recipe's `methods`.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from flatgd.artifacts import layout
from flatgd.artifacts.rows import SampledRow
from flatgd.artifacts.store import fingerprint_of, fingerprint_of_list
from flatgd.config.judge import JudgeSettings
from flatgd.config.names import BACKBONE, EXPERTS
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets, answer_candidates, draw_histories
from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError
from flatgd.io.files import free_bytes
from flatgd.io.records import read_jsonl
from flatgd.methods import METHODS, Checkpoint, Clean, Merge, Method, System
from flatgd.models.dtype import checkpoint_dtype, dtype_for, unless_float32
from flatgd.models.loading import load_config
from flatgd.pipeline.model_samples import contrasting_pairs, judged_replies, with_own_replies
from flatgd.pipeline.training_config import training_config
from flatgd.runtime import distributed
from flatgd.training import FlatGDConfig
from flatgd.training.loop import steps_of

DRAW_SEED = 0  # which test histories are answered does not depend on the recipe's seed
Rows = Sequence[Dialogue | tuple[Dialogue, Dialogue]]


@dataclass(frozen=True)
class PlannedModel:
    """One model with its recipe entry resolved.

    `start` is the model it is trained from or decodes with, `base` the path that model is loaded
    from. `path` is where the model itself is loaded from. `sampled_from` is the model whose replies
    it learns from beside the data's. `needs` are the models that must exist before it.
    """

    name: str
    kind: type[System]
    options: dict[str, Any]
    start: str
    base: str
    path: str
    sampled_from: str | None
    needs: tuple[str, ...]

    @property
    def learns_from_pairs(self) -> bool:
        return issubclass(self.kind, Method) and self.kind.learns_from == "pairs"

    @property
    def has_own_weights(self) -> bool:
        """Whether it has a checkpoint of its own instead of decoding with another model's."""
        return self.name == BACKBONE or issubclass(self.kind, Method | Merge | Checkpoint)

    @property
    def labels(self) -> tuple[bool, ...]:
        """The labels (true = safe) of the rows that it learns from."""
        if self.name == "toxic_expert":
            return (False,)
        takes_toxic = issubclass(self.kind, Method) and self.kind.trains_on_toxic
        return (True, False) if takes_toxic and self.name != "clean_expert" else (True,)


class Plan:
    """The models of one recipe on its data. `model_fingerprint` digests a model folder or a hub
    model."""

    def __init__(self, recipe: Recipe, sets: Sets, model_fingerprint: Callable[[str], str]):
        self.recipe, self.sets, self._model_fingerprint = recipe, sets, model_fingerprint
        self._models: dict[str, PlannedModel] = {}
        self._fingerprints: dict[str, str] = {}
        self._digests: dict[tuple[str, tuple[bool, ...]], str] = {}

    def model(self, name: str) -> PlannedModel:
        """Raises RecipeError for a name that the recipe does not have."""
        if name not in self._models:
            self._models[name] = self._resolve(name)
        return self._models[name]

    def _resolve(self, name: str) -> PlannedModel:
        recipe = self.recipe
        if name not in recipe.models:
            raise RecipeError(f"no {name!r} in this recipe; it has {', '.join(recipe.models)}")
        if name == BACKBONE:
            path = recipe.backbone
            return PlannedModel(name, System, {}, BACKBONE, path, path, None, ())
        is_expert = name in EXPERTS
        kind = Clean if is_expert else METHODS[recipe.kind_of(name)]
        start = BACKBONE if is_expert else recipe.start_of(name)
        base = recipe.base_of(name) if start == BACKBONE else self.model(start).path
        needs = dict.fromkeys(model for model in (*kind.needs, start) if model != BACKBONE)
        learns_from_pairs = issubclass(kind, Method) and kind.learns_from == "pairs"
        sampled_from = None if is_expert else recipe.sampled_from(name)
        return PlannedModel(
            name=name,
            kind=kind,
            options=recipe.overrides(name),
            start=start,
            base=base,
            path=base if kind is Checkpoint else str(recipe.output / layout.model(name)),
            sampled_from=sampled_from or (BACKBONE if learns_from_pairs else None),
            needs=tuple(needs),
        )

    def config(self, name: str, output: Path) -> FlatGDConfig:
        planned = self.model(name)
        config = training_config(self.recipe, planned.options, output, planned.kind)
        chosen = self.recipe.training_fields(planned.options).get("expert_cache", "auto")
        has_own_rows = bool(self.learns_from(name))  # a cache is of the data's rows
        if chosen == "auto" and needs_experts(planned.kind) and not has_own_rows:
            config.expert_cache = str(self.recipe.output / layout.STATES) if self._caches else None
        return config

    @cached_property
    def _caches(self) -> bool:
        return caching_pays(self.recipe, self.sets)

    def dtype(self, name: str) -> torch.dtype:
        """The precision in which a model is loaded where it is frozen."""
        return dtype_for(self.recipe.dtype_of(name), self._checkpoint_dtype(name))

    def _checkpoint_dtype(self, name: str) -> torch.dtype | None:
        planned = self.model(name)
        if name == BACKBONE:
            return checkpoint_dtype(planned.base)
        if issubclass(planned.kind, Merge):
            return torch.float32
        if issubclass(planned.kind, Method) and not self.config(name, Path()).lora_rank:
            return torch.float32
        is_start = planned.start == BACKBONE
        return checkpoint_dtype(planned.base) if is_start else self._checkpoint_dtype(planned.start)

    def base_dtype(self, name: str) -> torch.dtype:
        """The precision of the frozen base under an adapter that is trained; float32 where all
        weights are trained, or where the base is an adapter itself."""
        planned = self.model(name)
        is_adapter = bool(self.config(name, Path()).lora_rank)
        return self.dtype(name) if is_adapter and planned.start == BACKBONE else torch.float32

    def dtype_of_role(self, role: str, model: str) -> torch.dtype:
        """The precision of the scorer, or of a judge's model."""
        return dtype_for(self.recipe.dtype_of(role), checkpoint_dtype(model))

    def judge_dtype(self, settings: JudgeSettings) -> torch.dtype:
        """The precision of a judge's model; of a trained one, that of its passes."""
        if settings.model is None:
            return torch.float32
        return self.dtype_of_role(settings.label, settings.model)

    def _dtypes(self, planned: PlannedModel) -> list[str]:
        """What is not float32 in a model's training, for its fingerprint."""
        used = {name: self.dtype(name) for name in planned.kind.needs if name != BACKBONE}
        used["base"] = self.base_dtype(planned.name)
        return [f"{n} {name}" for n, dtype in used.items() for name in unless_float32(dtype)]

    def steps(self, name: str) -> int:
        """Optimizer steps that a model is trained for."""
        return steps_of(self.config(name, self.recipe.output), len(self.rows(name)))

    def learns_from(self, name: str) -> list[str]:
        """The models whose replies a model learns from."""
        planned = self.model(name)
        shares = self.recipe.share_of(name) > 0 and issubclass(planned.kind, Method)
        sources = dict.fromkeys((BACKBONE if shares else None, planned.sampled_from))
        return [source for source in sources if source is not None]

    def data_rows(self, name: str) -> list[Dialogue]:
        """The rows of the data that a model is trained on, if no replies are sampled."""
        return _labelled(self.sets.policy, self.model(name).labels)

    def policy(self, name: str) -> list[Dialogue]:
        """The policy data of a model: the data's, with its share of the safe replies sampled from
        the backbone."""
        share = self.recipe.share_of(name)
        if not share:
            return self.sets.policy
        sampled = self._sampled(BACKBONE)
        found = with_own_replies(self.sets.policy, sampled, share, self.recipe.seed)
        if not any(row.is_safe for row in found):
            raise RecipeError(
                f"{name}: the judge in the loop finds no safe reply of the backbone to learn from; "
                "raise sample.histories, or choose another sample.judge"
            )
        return found

    def _sampled(self, name: str) -> list[SampledRow]:
        return list(read_jsonl(self.recipe.output / layout.samples(name)))

    def rows(self, name: str) -> Rows:
        """What a model is trained on. Sampled replies to learn from must be on disk."""
        planned = self.model(name)
        rows = _labelled(self.policy(name), planned.labels)
        if planned.sampled_from is None:
            return rows
        sampled = self._sampled(planned.sampled_from)
        found: Rows = (
            contrasting_pairs(sampled)
            if planned.learns_from_pairs
            else judged_replies(sampled, self.recipe.seed)
        )
        if not found:
            to_one = " to one history" if planned.learns_from_pairs else ""
            raise RecipeError(
                f"{name}: {planned.sampled_from} gave no safe and toxic replies to learn from"
                f"{to_one}, as judged in the loop; raise sample.histories or sample.samples"
            )
        return [*rows, *found]

    def eval_rows(self, name: str) -> list[Dialogue] | None:
        """What a model is evaluated on during its training; None without evaluation."""
        planned = self.model(name)
        if not self.recipe.evaluates(planned.options):
            return None
        return _labelled(self.sets.eval, planned.labels)

    def _digest(self, part: Literal["policy", "eval"], labels: tuple[bool, ...]) -> str:
        """`rows_digest` of a set's rows with these labels; several models learn from the same."""
        if (part, labels) not in self._digests:
            rows = _labelled(getattr(self.sets, part), labels)
            self._digests[part, labels] = rows_digest(rows)
        return self._digests[part, labels]

    def fingerprint(self, name: str) -> str:
        """A digest of everything that the model depends on. `clean` and the clean expert can have
        the same one."""
        if name not in self._fingerprints:
            self._fingerprints[name] = self._fingerprint(self.model(name))
        return self._fingerprints[name]

    def _fingerprint(self, planned: PlannedModel) -> str:
        if planned.name == BACKBONE or planned.kind is Checkpoint:
            return self._model_fingerprint(planned.path)
        is_trained = issubclass(planned.kind, Method)
        is_evaluated = is_trained and self.recipe.evaluates(planned.options)
        return fingerprint_of(
            "train",
            planned.kind.name,
            self._model_fingerprint(planned.base)
            if planned.start == BACKBONE
            else self.fingerprint(planned.start),
            [self.fingerprint(name) for name in planned.kind.needs],
            self._digest("policy", planned.labels) if is_trained else None,
            self.recipe.training_fields(planned.options),
            [self.recipe.seed, *self.recipe.layout],
            [self.sample_fingerprint(source) for source in self.learns_from(planned.name)],
            float(self.recipe.share_of(planned.name)) if is_trained else None,
            *([self._digest("eval", planned.labels)] if is_evaluated else []),
            *_precision_of_environment(),
            *(self._dtypes(planned) if is_trained else []),
        )

    # Sampled replies

    def sample_histories(self) -> list[Dialogue]:
        """The policy's histories that models answer."""
        return draw_histories(self.sets.policy, self.recipe.sample.histories, self.recipe.seed)

    def sample_fingerprint(self, name: str) -> str:
        generate = self.recipe.sample_settings.model_dump(exclude={"histories"})
        sample = self.recipe.sample.model_dump(mode="json", exclude={"share", "judge"})
        settings = [sample, generate, self.recipe.seed]
        return fingerprint_of(
            "sample",
            self.fingerprint(name),
            self.in_loop_fingerprint(),
            settings,
            self.recipe.layout,
        )

    def in_loop_fingerprint(self) -> str:
        """A digest of everything that the judge in the loop depends on."""
        judge = self.recipe.sample.judge
        model = judge.model and self._model_fingerprint(judge.model)
        return fingerprint_of(
            "in_loop",
            judge.model_dump(exclude={"model"}),
            model,
            self._digest("policy", (True, False)),
            *unless_float32(self.judge_dtype(judge)),
        )


def histories_to_answer(recipe: Recipe, sets: Sets) -> list[Dialogue]:
    """The test rows whose histories the models answer; the same for every seed."""
    rows = answer_candidates(sets.test, recipe.data.test)
    every = recipe.generate.histories
    limits = {source.name: source.histories or every for source in recipe.data.test}
    by_source = {name: [r for r in rows if r.source == name] for name in {r.source for r in rows}}
    drawn = {
        name: draw_histories(part, limits[name], DRAW_SEED) for name, part in by_source.items()
    }
    return [row for name in limits for row in drawn.get(name, [])]


def needs_experts(kind: type[System]) -> bool:
    """Whether a training passes its rows through both experts."""
    return issubclass(kind, Method) and set(EXPERTS) <= set(kind.needs)


def caching_pays(recipe: Recipe, sets: Sets) -> bool:
    """Whether the trainings on the data's rows pass more of them through the experts than there are
    to cache, and the states take at most a quarter of the free disk space."""
    rows, seen = len(sets.policy) + len(sets.eval), 0
    for name in recipe.methods:
        kind = METHODS[recipe.kind_of(name)]
        has_own_rows = recipe.share_of(name) or recipe.sampled_from(name)
        if needs_experts(kind) and not has_own_rows:
            config = training_config(recipe, recipe.overrides(name), recipe.output, kind)
            batch = config.per_device_train_batch_size * distributed.count()
            seen += steps_of(config, len(sets.policy)) * batch
    return seen > rows and 4 * states_bytes(recipe, sets) < free_bytes(recipe.output)


def states_bytes(recipe: Recipe, sets: Sets) -> float:
    """Disk space of both experts' states if every reply has full length."""
    config = load_config(recipe.expert_backbone or recipe.backbone).get_text_config()
    width = getattr(config, "hidden_size", None) or config.d_model
    return 2.0 * len(sets.policy) * recipe.max_reply_tokens * width * 4


def _labelled(rows: Iterable[Dialogue], labels: tuple[bool, ...]) -> list[Dialogue]:
    return [row for row in rows if bool(row.is_safe) in labels]


def _precision_of_environment() -> list[str]:
    """The precision that the environment asks accelerate for, if it asks for one."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return [] if precision == "no" else [precision]


def rows_digest(rows: Iterable[Dialogue]) -> str:
    """A digest of every field but `where`."""
    return fingerprint_of_list(map(_fields_of, rows))


def _fields_of(row: Dialogue) -> tuple[Any, ...]:
    name = row.conversation
    return row.history, row.reply, row.is_safe, row.source, name, row.speaker, row.system, ""
