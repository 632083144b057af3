"""Points in weight space to compare: where a training ended, and where it passed a given L_S.

End points differ in their L_S, and a lower loss is often a sharper one. So methods are also
compared where their L_S is the same. The path of a method leads from the backbone over its
snapshots (`train: {snapshots: 4}`) to its end point, in straight lines. The matched point is the
first one on that path whose L_S equals the highest L_S of all end points.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatgd.artifacts import layout
from flatgd.artifacts.rows import STUDY_FORMAT
from flatgd.artifacts.store import fingerprint_of
from flatgd.config.loading import load_recipe
from flatgd.config.names import BACKBONE, EXPERTS
from flatgd.config.recipe import Recipe
from flatgd.data.sets import scorable
from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError, UsageError
from flatgd.flatness.curvature import loss_value
from flatgd.io.files import write_atomically
from flatgd.methods import Method, SafetyLoss, Totals
from flatgd.models.adapters import load
from flatgd.models.heads import reply_tokens
from flatgd.models.loading import ADAPTER
from flatgd.pipeline.context import Context
from flatgd.pipeline.pipeline import Pipeline
from flatgd.runtime.display import Display

State = dict[str, Tensor]
BISECTIONS = 10
ROWS = 48  # default number of training rows, and of test rows


class Point(NamedTuple):
    """Weights of a method. `step` is the position on its path, in optimizer steps. `start` is the
    backbone."""

    method: str
    at: Literal["start", "end", "matched"]
    step: float
    state: State


def open_run(
    checkpoints: Sequence[Path], display: Display | None = None
) -> tuple[Pipeline, list[str]]:
    """The run that the checkpoints belong to, and their names in it."""
    recipe, names = recipe_of(checkpoints)
    pipeline = Pipeline(recipe, display)
    planned = [pipeline.context.plan.model(name) for name in names]
    if untrained := [one.name for one in planned if not issubclass(one.kind, Method)]:
        raise UsageError(f"{untrained[0]} was not trained, so it has no path; leave it out")
    if later := [one.name for one in planned if one.start != BACKBONE]:
        raise UsageError(f"{later[0]} does not start at the backbone, as paths do; leave it out")
    return pipeline, names


def recipe_of(checkpoints: Sequence[Path]) -> tuple[Recipe, list[str]]:
    """The recipe of the run that the checkpoints belong to, and their names in it."""
    roots = {}
    for folder in checkpoints:
        root = layout.find_run(folder)
        is_model = any((folder / name).exists() for name in ("config.json", ADAPTER))
        if root is None or not is_model:
            raise UsageError(
                f"{folder} is no checkpoint of a flatgd run; give folders such as "
                "runs/demo/methods/flatgd"
            )
        roots[folder] = root
    if len(set(roots.values())) > 1:
        raise UsageError("the checkpoints are of different runs; give those of one run")
    root = next(iter(roots.values()))
    recipe = load_recipe(root / layout.RECIPE)
    own = {root / layout.model(name): name for name in recipe.methods}
    if strange := [folder for folder in checkpoints if folder.resolve() not in own]:
        known = ", ".join(recipe.methods)
        raise UsageError(f"{strange[0]} is no method of its run; {root}/methods has {known}")
    names = list(dict.fromkeys(own[folder.resolve()] for folder in checkpoints))
    return recipe.model_copy(update={"output": root}), names


class Landscape:
    """L_S over weight space on fixed rows: a model whose weights are replaced, and the experts."""

    def __init__(self, context: Context, rows: int = ROWS):
        self.context = context
        self.model, self.dialogue_format = context.load_model(context.recipe.backbone)
        self.model.eval()
        self.start: State = load(context.recipe.backbone).state_dict()
        clean, toxic = (context.load_model(context.plan.model(name).path)[0] for name in EXPERTS)
        attract, repel = _weights(context)
        self.method = SafetyLoss(clean, toxic, attract_weight=attract, repel_weight=repel)
        drawn = _drawn(context.sets.policy, rows), _drawn(scorable(context.sets.test), rows)
        self.train_parts, self.test_parts = (self._prepared(part) for part in drawn)

    @cached_property
    def parameters(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def at(self, state: State) -> nn.Module:
        """The model with these weights."""
        self.model.load_state_dict(state)
        return self.model

    def losses(self) -> Iterator[Tensor]:
        """L_S on the training rows, batch by batch; the sum is that of all rows."""
        return self._losses(self.train_parts)

    def test_losses(self) -> Iterator[Tensor]:
        return self._losses(self.test_parts)

    def _losses(self, parts: Sequence[Any]) -> Iterator[Tensor]:
        tokens = float(sum(len(reply_tokens(part)[0]) for part in parts))
        for part in parts:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
                yield self.method.terms(self.model, part, Totals(tokens, tokens)).terms.penalised

    def _prepared(self, rows: Sequence[Dialogue], size: int = 16) -> list[Any]:
        examples = sorted(
            (self.dialogue_format.encode(row) for row in rows), key=lambda e: len(e.reply_ids)
        )
        batches = [
            self.dialogue_format.collate(examples[start : start + size])
            for start in range(0, len(examples), size)
        ]
        device = next(self.model.parameters()).device
        return self.method.prepare([{k: v.to(device) for k, v in b.items()} for b in batches])

    def path(self, name: str) -> list[tuple[int, State]]:
        """(step, weights) of the backbone, the snapshots and the end point."""
        folder = Path(self.context.plan.model(name).path)
        kept = sorted((folder / "path").glob("*"), key=lambda p: int(p.name))
        steps = [(int(path.name), load(path).state_dict()) for path in kept]
        end = self.context.plan.steps(name)
        inner = [(step, state) for step, state in steps if step < end]
        return [(0, self.start), *inner, (end, self.end(name))]

    def end(self, name: str) -> State:
        """The weights of the end point."""
        return load(self.context.plan.model(name).path).state_dict()

    def points(self, names: Iterable[str]) -> list[Point]:
        """Each method's end point, and its matched point where there are several methods."""
        paths = {name: self.path(name) for name in names}
        ends = {name: self._value(path[-1][1]) for name, path in paths.items()}
        target = max(ends.values())
        points = [Point(n, "end", float(p[-1][0]), p[-1][1]) for n, p in paths.items()]
        if len(ends) < 2:
            return points
        if self._value(self.start) <= target:
            self.context.display.line(
                "matched", "none: an end point's L_S is not below the backbone's"
            )
            return points
        for name, path in paths.items():
            step, state = first_below(path, target, self._value)
            points.append(Point(name, "matched", step, state))
        return points

    def _value(self, state: State) -> float:
        self.at(state)
        return loss_value(self.losses)


def _weights(context: Context) -> tuple[float, float]:
    """The weights of L_S (attract, repel). Raises RecipeError where methods differ in them."""
    found = {}
    for name in context.recipe.methods:
        if issubclass(context.plan.model(name).kind, SafetyLoss):
            config = context.plan.config(name, context.root)
            found[name] = (config.attract_weight, config.repel_weight)
    weights = set(found.values())
    if len(weights) > 1:
        raise RecipeError(
            f"{', '.join(found)} weigh L_S differently, so they cannot be measured by one L_S; "
            "give them the same attract_weight and repel_weight"
        )
    return weights.pop() if weights else (3.0, 2.0)


def write_study(
    pipeline: Pipeline, name: str, artifacts: Sequence[str], figures: Mapping[str, Any]
) -> Path:
    """Write report/NAME.json with the fingerprints of the checkpoints or scores that were
    studied."""
    store, file = pipeline.context.store, pipeline.context.root / layout.study(name)
    file.parent.mkdir(exist_ok=True)
    of = {artifact: store.fingerprint(artifact) for artifact in artifacts}
    study = {"format": STUDY_FORMAT, "of": of, **figures}
    write_atomically(file, json.dumps(study, indent=1) + "\n")
    store.record(layout.study(name), fingerprint_of(of))
    return file


def first_below(
    path: Sequence[tuple[int, State]], target: float, value: Callable[[State], float]
) -> tuple[float, State]:
    """(step, weights) of the first point on the path where `value` falls to `target`, by bisection
    on the straight line between two nodes; the end of the path if it never does."""
    for (step, near), (next_step, far) in pairwise(path):
        if value(far) > target:
            continue
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if value(between(near, far, middle)) > target:
                low = middle
            else:
                high = middle
        return step + high * (next_step - step), between(near, far, high)
    return float(path[-1][0]), path[-1][1]


def between(one: State, other: State, share: float) -> State:
    """one + share * (other - one)."""
    return {
        name: torch.lerp(value, other[name], share) if value.is_floating_point() else value
        for name, value in one.items()
    }


def _drawn(rows: Sequence[Dialogue], count: int) -> list[Dialogue]:
    """`count` rows, evenly spread; half of them safe and half toxic, if there are that many."""
    parts = [[row for row in rows if row.is_safe is label] for label in (True, False)]
    return [
        part[n * len(part) // wanted]
        for part in parts
        for wanted in [min(len(part), count // 2)]
        for n in range(wanted)
    ]
