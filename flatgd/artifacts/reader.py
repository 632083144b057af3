"""A finished run, read in one place: generations, scores, judges, training settings."""

import json
from collections.abc import Sequence
from typing import Any, cast

from flatgd.artifacts import layout
from flatgd.artifacts.rows import GenerationRow, JudgedRow
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.recipe import Recipe
from flatgd.errors import RecipeError
from flatgd.io.records import read_jsonl


def generations_of(recipe: Recipe, models: Sequence[str]) -> dict[str, list[GenerationRow]]:
    """The sampled replies of some models of a run. Raises RecipeError for one that the recipe does
    not have, or that has not answered yet."""
    if unknown := [name for name in models if name not in recipe.models]:
        raise RecipeError(f"no {unknown[0]!r} in this recipe; it has {', '.join(recipe.models)}")
    paths = {name: recipe.output / layout.generations(name) for name in models}
    if absent := [name for name, path in paths.items() if not path.exists()]:
        raise RecipeError(f"no replies yet of {', '.join(absent)}; `flatgd run` samples them")
    return {name: list(read_jsonl(path)) for name, path in paths.items()}


def judged_generations_of(recipe: Recipe, models: Sequence[str]) -> dict[str, list[JudgedRow]]:
    """`generations_of`, each row with `judged`, the judges' P(toxic) of its replies, where they
    have been scored since."""
    generations = cast(dict[str, list[JudgedRow]], generations_of(recipe, models))
    store = ArtifactStore(recipe.output)
    for name, rows in generations.items():
        artifact = layout.scores(name)
        if (recipe.output / artifact).exists() and not store.is_stale(artifact):
            scores = [r for r in read_jsonl(recipe.output / artifact) if r["kind"] == "generated"]
            for row, score in zip(rows, scores, strict=True):
                row["judged"] = score["toxic"]
    return generations


def load_judges(recipe: Recipe) -> list[dict[str, Any]]:
    """quality.json of each judge."""
    paths = [recipe.output / layout.judge_quality(judge.label) for judge in recipe.judges]
    if absent := [path for path in paths if not path.exists()]:
        raise RecipeError(f"no judge yet at {absent[0].parent}; `flatgd run` makes it")
    return [json.loads(path.read_text()) for path in paths]


def trained_with(recipe: Recipe, method: str) -> dict[str, Any]:
    """The settings of a trained method. Raises RecipeError where the recipe says otherwise."""
    path = recipe.output / layout.model(method) / layout.SETTINGS
    if not path.exists():
        raise RecipeError(f"{method} is not trained yet; `flatgd run` trains it")
    found: dict[str, Any] = json.loads(path.read_text())
    preset = found.pop(layout.PRESET, {})
    wanted = json.loads(json.dumps(recipe.settings(method)))
    for key in found.keys() | wanted.keys():
        if found.get(key) != wanted.get(key):
            raise RecipeError(
                f"{method} was trained with {key} {found.get(key)}, the recipe says "
                f"{wanted.get(key)}; give the same --set as to `flatgd run`, or run it again"
            )
    return {key: value for key, value in (found | preset).items() if value is not None}
