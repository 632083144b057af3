"""A finished run, read in one place: generations, scores, judges, studies, training settings."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from flatgd.artifacts import layout
from flatgd.artifacts.rows import (
    STUDY_FORMAT,
    DurabilityStudy,
    EstimateRow,
    FlatnessStudy,
    GeneralisationStudy,
    GenerationRow,
    JudgedRow,
    JudgeReport,
    Scores,
)
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.names import REFERENCE
from flatgd.config.recipe import Recipe
from flatgd.errors import RecipeError, UsageError
from flatgd.io.records import read_jsonl

UPDATE = "run `flatgd run RECIPE`; it rebuilds what is out of date"
STUDIES = ("flatness", "durability", "generalisation")


class Studies(NamedTuple):
    """The studies of a run; None where there is none of its present checkpoints. `stale` names
    those of other checkpoints."""

    flatness: FlatnessStudy | None
    durability: DurabilityStudy | None
    generalisation: GeneralisationStudy | None
    stale: list[str]


def generations_of(recipe: Recipe, models: Sequence[str]) -> dict[str, list[GenerationRow]]:
    """The sampled replies of some models of a run.

    Raises UsageError for a model that the recipe does not have, or without replies.
    """
    if unknown := [name for name in models if name not in recipe.models]:
        raise UsageError(f"no {unknown[0]!r} in this recipe; it has {', '.join(recipe.models)}")
    paths = {name: recipe.output / layout.generations(name) for name in models}
    if absent := [name for name, path in paths.items() if not path.exists()]:
        raise UsageError(f"no replies yet of {', '.join(absent)}; `flatgd run` samples them")
    return {name: list(read_jsonl(path)) for name, path in paths.items()}


def judged_generations_of(recipe: Recipe, models: Sequence[str]) -> dict[str, list[JudgedRow]]:
    """`generations_of`, each row with `judged`, the judges' P(toxic) of its replies, where they
    have been scored since."""
    generations = cast(dict[str, list[JudgedRow]], generations_of(recipe, models))
    store = ArtifactStore(recipe.output)
    for name, rows in generations.items():
        artifact = layout.scores(name)
        if (recipe.output / artifact).exists() and not store.is_stale(artifact):
            scores = scores_of(recipe.output, [name])[name]
            replies = [row for row in scores if row["kind"] == "generated"]
            for row, score in zip(rows, replies, strict=True):
                row["judged"] = score["toxic"]
    return generations


def scores_of(root: Path, models: Sequence[str]) -> Scores:
    """The score files of some models in one run's folder. Raises UsageError for a missing one."""
    paths = {name: root / layout.scores(name) for name in models}
    if absent := [path for path in paths.values() if not path.exists()]:
        raise UsageError(f"no scores yet at {absent[0]}; `flatgd run` makes them")
    return {name: list(read_jsonl(path)) for name, path in paths.items()}


def scores_of_seeds(recipe: Recipe) -> list[Scores]:
    """The score files of each seed, with the reference. Raises UsageError where some are missing or
    out of date, RecipeError where they are of another recipe."""
    missing = [n for n in recipe.models if not (recipe.output / layout.scores(n)).exists()]
    if missing:
        raise UsageError(f"no scores yet of {', '.join(missing)}; `flatgd run` makes them")
    seeds = []
    for root in roots_of_seeds(recipe):
        _refuse_stale(root, recipe)
        scores = scores_of(root, [*recipe.models, REFERENCE])
        _refuse_other_recipes(scores, recipe)
        seeds.append(scores)
    return seeds


def roots_of_seeds(recipe: Recipe) -> list[Path]:
    """The folder of each seed's run, the first seed's first."""
    further = range(recipe.seed + 1, recipe.seed + recipe.seeds)
    return [recipe.output, *(recipe.output / layout.seed(number) for number in further)]


def _refuse_stale(root: Path, recipe: Recipe) -> None:
    store = ArtifactStore(root)
    for name in recipe.models:
        for artifact in (layout.generations(name), layout.scores(name)):
            if store.is_stale(artifact):
                path = root / artifact
                raise UsageError(f"{path} is of an earlier checkpoint or judge; {UPDATE}")


def _refuse_other_recipes(scores: Scores, recipe: Recipe) -> None:
    """Scores must be by the recipe's judges, of its number of replies, of one set of histories."""
    judges = [judge.label for judge in recipe.judges]
    asked = None
    for name in recipe.models:
        rows = [r for r in scores[name] if r["kind"] == "generated" or r["kind"] == "reference"]
        conversations = [row["conversation"] for row in rows]
        asked = conversations if asked is None else asked
        counts = {len(probabilities) for row in rows for probabilities in row["toxic"].values()}
        if conversations != asked or counts - {recipe.generate.samples}:
            raise RecipeError(
                f"the scores of {name} are of other histories or another number of replies than "
                f"this recipe asks for; {UPDATE}"
            )
        if any(list(row["toxic"]) != judges for row in rows):
            raise RecipeError(f"the scores of {name} are not by {', '.join(judges)}; {UPDATE}")


def load_judges(recipe: Recipe) -> list[JudgeReport]:
    """quality.json of each judge. Raises UsageError where one is missing."""
    paths = [recipe.output / layout.judge_quality(judge.label) for judge in recipe.judges]
    if absent := [path for path in paths if not path.exists()]:
        raise UsageError(f"no judge yet at {absent[0].parent}; `flatgd run` makes it")
    return [json.loads(path.read_text()) for path in paths]


def load_summary(recipe: Recipe) -> list[EstimateRow]:
    """report/summary.json. Raises UsageError where there is none."""
    path = recipe.output / layout.SUMMARY
    if not path.exists():
        raise UsageError(f"no summary yet at {path}; `flatgd run` builds it")
    summary: list[EstimateRow] = json.loads(path.read_text())
    return summary


def load_studies(recipe: Recipe) -> Studies:
    """Every study of the run's present checkpoints."""
    found = {name: _load_study(recipe, name) for name in STUDIES}
    there = [name for name in STUDIES if (recipe.output / layout.study(name)).exists()]
    return Studies(**found, stale=[name for name in there if found[name] is None])


def _load_study(recipe: Recipe, name: str) -> Any:
    """The figures of a study; None where there is none of these checkpoints."""
    try:
        study = json.loads((recipe.output / layout.study(name)).read_text())
        of = dict(study["of"])
        if study["format"] != STUDY_FORMAT:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    store, known = ArtifactStore(recipe.output), {layout.model(name) for name in recipe.methods}
    is_current = of.keys() <= known and all(store.fingerprint(a) == f for a, f in of.items())
    return study if is_current else None


def training_log(recipe: Recipe, name: str) -> list[dict[str, float]] | None:
    """One row of figures for each logged step of a training; None for what was not trained."""
    path = recipe.output / layout.training_log(name)
    return list(read_jsonl(path)) if path.exists() else None


def trained_with(recipe: Recipe, method: str) -> dict[str, Any]:
    """The settings of a trained method. Raises RecipeError where the recipe says otherwise,
    UsageError where the method is not trained."""
    path = recipe.output / layout.model(method) / layout.SETTINGS
    if not path.exists():
        raise UsageError(f"{method} is not trained yet; `flatgd run` trains it")
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
