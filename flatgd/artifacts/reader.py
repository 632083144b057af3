"""Reads a finished run: generations, scores, judges, studies, training settings. Also checks that
the run is of the recipe given, and whole."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from flatgd.artifacts import layout
from flatgd.artifacts.recipe_inputs import changes, inputs_of
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
from flatgd.artifacts.store import ArtifactStore, fingerprint_of
from flatgd.config.names import REFERENCE
from flatgd.config.recipe import Recipe
from flatgd.errors import RecipeError, UsageError
from flatgd.io.records import read_jsonl

UPDATE = "`flatgd run RECIPE` rebuilds what is out of date"
SMALL_FILES = (layout.SETTINGS, layout.TRAINING_LOG, layout.QUALITY, layout.CALIBRATION)
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
    _refuse_missing(root, models)
    return {name: list(read_jsonl(root / layout.scores(name))) for name in models}


def _refuse_missing(root: Path, models: Sequence[str]) -> None:
    for path in (root / layout.scores(name) for name in models):
        if not path.exists():
            raise UsageError(f"no scores yet at {path}; `flatgd run` makes them")


def scores_of_seeds(recipe: Recipe) -> list[Scores]:
    """The score files of each seed, with the reference, verified. Raises UsageError where some are
    missing, out of date or corrupted, RecipeError where they are of another recipe."""
    missing = [n for n in recipe.models if not (recipe.output / layout.scores(n)).exists()]
    if missing:
        raise UsageError(f"no scores yet of {', '.join(missing)}; `flatgd run` makes them")
    seeds = []
    names = [*recipe.models, REFERENCE]
    for of_seed in recipes_of_seeds(recipe):
        _refuse_missing(of_seed.output, names)
        verify(of_seed, [layout.scores(name) for name in names])
        scores = scores_of(of_seed.output, names)
        _refuse_other_replies(scores, of_seed)
        seeds.append(scores)
    return seeds


def recipes_of_seeds(recipe: Recipe) -> list[Recipe]:
    """The recipe of each seed's run, the first seed's first."""
    further = range(recipe.seed + 1, recipe.seed + recipe.seeds)
    changed = [{"output": recipe.output / layout.seed(n), "seed": n, "seeds": 1} for n in further]
    return [recipe, *(recipe.model_copy(update=fields) for fields in changed)]


def verify(recipe: Recipe, artifacts: Sequence[str], weights: bool = False) -> None:
    """Check artifacts, and everything that they were built from, against the recipe.

    Raises RecipeError where the recipe is not the one they were built from, UsageError where one is
    missing, out of date or corrupted. What they were built from may have been deleted since, as
    the toxic expert should be. `weights`: digest also the weights of the named artifacts; of the
    others only files and the small files of folders are digested.
    """
    store, inputs = ArtifactStore(recipe.output), inputs_of(recipe)
    needed = dict.fromkeys(other for name in artifacts for other in store.needed_by(name))
    for artifact in needed:
        path, known = recipe.output / artifact, store.inputs(artifact)
        is_there = store.fingerprint(artifact) is not None and known is not None
        if not is_there and artifact in artifacts:
            raise UsageError(f"{path} is missing or unfinished; {UPDATE}")
        if known is None:
            continue
        for change in changes(known, inputs.get(artifact, known)):
            raise RecipeError(
                f"{path} was built with {change.field} {_brief(change.before)}, the recipe says "
                f"{_brief(change.now)}; give the same --set as to `flatgd run`, or run it again"
            )
        if store.is_stale(artifact):
            raise UsageError(f"{path} is of an earlier checkpoint or judge; {UPDATE}")
        only = None if weights and artifact in artifacts else SMALL_FILES
        if error := store.integrity_error(artifact, only):
            raise UsageError(f"{path} is corrupted: {error}; {UPDATE}")


def _brief(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _refuse_other_replies(scores: Scores, recipe: Recipe) -> None:
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
    """report/summary.json. Raises UsageError where it is missing, changed or of other scores."""
    store, path = ArtifactStore(recipe.output), recipe.output / layout.SUMMARY
    if not path.exists():
        raise UsageError(f"no summary yet at {path}; `flatgd run` builds it")
    is_current = store.fingerprint(layout.SUMMARY) == summary_fingerprint(recipe)
    if not is_current or store.integrity_error(layout.SUMMARY):
        raise UsageError(f"{path} is not of the run's scores; build it with `flatgd report RECIPE`")
    summary: list[EstimateRow] = json.loads(path.read_text())
    return summary


def summary_fingerprint(recipe: Recipe) -> str:
    """A digest of the scores that a summary is computed from."""
    names = [*recipe.models, REFERENCE]
    stores = [ArtifactStore(of_seed.output) for of_seed in recipes_of_seeds(recipe)]
    return fingerprint_of(
        "summary", [(n, store.fingerprint(layout.scores(n))) for store in stores for n in names]
    )


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
    store = ArtifactStore(recipe.output)
    known = {*map(layout.model, recipe.methods), *map(layout.scores, recipe.methods)}
    is_current = of.keys() <= known and all(store.fingerprint(a) == f for a, f in of.items())
    is_intact = store.fingerprint(layout.study(name)) == fingerprint_of(of)
    is_current &= is_intact and store.integrity_error(layout.study(name)) is None
    return study if is_current else None


def training_log(recipe: Recipe, name: str) -> list[dict[str, float]] | None:
    """One row of figures for each logged step of a training; None for what was not trained."""
    path = recipe.output / layout.training_log(name)
    return list(read_jsonl(path)) if path.exists() else None


def trained_with(recipe: Recipe, method: str) -> dict[str, Any]:
    """The settings of a trained method, without those of `None`. Raises UsageError where it is not
    trained."""
    path = recipe.output / layout.model(method) / layout.SETTINGS
    if not path.exists():
        raise UsageError(f"{method} is not trained yet; `flatgd run` trains it")
    found: dict[str, Any] = json.loads(path.read_text())
    preset = found.pop(layout.PRESET, {})
    return {key: value for key, value in (found | preset).items() if value is not None}
