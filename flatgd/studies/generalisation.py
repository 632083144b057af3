"""How safety holds on what was not trained on, in two ways, for each data set that is also tested.

    missing negatives   the data set's toxic replies are left out of the policy's data: what the
                        paper tests with ProsocialDialog, which has none
    left out            the data set is left out altogether

Experts and methods are trained anew on what is left, with the first seed, and measured on that data
set's test rows; the whole run stands beside them. Judges and test rows stay the same.
"""

from pathlib import Path
from typing import Any

from flatgd.artifacts import layout
from flatgd.artifacts.reader import load_judges
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets
from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError
from flatgd.evaluation.summary import Settings, gaps
from flatgd.io.records import read_jsonl
from flatgd.pipeline.pipeline import Pipeline
from flatgd.studies.landscape import write_study

Row = dict[str, Any]
QUESTIONS = {"missing_negatives": "its toxic replies missing", "left_out": "left out"}


def study_generalisation(pipeline: Pipeline) -> Path:
    """Train and measure every variant, kept and resumed as a run is; returns the figures' file."""
    context = pipeline.context
    recipe, sets = context.recipe, context.sets
    asked = [
        (s, q)
        for s in _tested(sets)
        for q in QUESTIONS
        if _is_enough(_without(sets, s, q), sets.policy)
    ]
    if not asked:
        raise RecipeError(
            "generalisation: no data set of data.policy can be held out; one is needed that is "
            "also in data.test, by the same name, beside another with safe and toxic replies"
        )
    pipeline.run()
    judge = load_judges(recipe)[0]
    settings = Settings(
        recipe.generate.samples,
        {judge["name"]: judge["threshold"]},
        recipe.report.resamples,
        recipe.seed,
        recipe.baseline,
    )
    rows: list[Row] = []
    for source, question in asked:
        policy = _without(sets, source, question)
        context.display.line("generalisation", f"{source}: {QUESTIONS[question]}")
        folder = layout.generalisation(question, source)
        variant = pipeline.variant(folder, policy=policy)
        for name in recipe.methods:
            variant.evaluation.score(name)
        seen, unseen = (
            _scores(root, recipe, source) for root in (context.root, variant.context.root)
        )
        rows += [{"question": question, **row} for row in gaps(seen, unseen, settings)]
    return write_study(pipeline, "generalisation", list(recipe.methods), {"rows": rows})


def _tested(sets: Sets) -> list[str]:
    """Data sets of the policy's data that have a test set of the same name."""
    tested = {row.source for row in sets.test}
    return [name for name in dict.fromkeys(r.source for r in sets.policy) if name in tested]


def _without(sets: Sets, source: str, question: str) -> list[Dialogue]:
    if question == "left_out":
        return [row for row in sets.policy if row.source != source]
    return [row for row in sets.policy if row.source != source or row.is_safe]


def _is_enough(policy: list[Dialogue], of: list[Dialogue]) -> bool:
    """Whether there is something to learn from, and something was taken away."""
    return {True, False} <= {row.is_safe for row in policy} and len(policy) < len(of)


def _scores(root: Path, recipe: Recipe, source: str) -> dict[str, list[Row]]:
    return {
        name: [row for row in read_jsonl(root / layout.scores(name)) if row["dataset"] == source]
        for name in recipe.methods
    }
