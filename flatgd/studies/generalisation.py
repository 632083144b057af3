"""How well safety generalises to a data set that was not trained on, for each one that is tested.

    missing negatives   the policy's data lack the toxic replies of the data set; the paper tests
                        this with ProsocialDialog, which has none
    left out            the policy's data lack the data set

Experts and methods are trained on the rest, with the first seed, and measured on the test rows of
that data set. The run itself is the comparison. Judges and test rows stay the same.
"""

from pathlib import Path

from flatgd.artifacts import layout
from flatgd.artifacts.reader import load_judges, scores_of
from flatgd.artifacts.rows import GapRow, Scores
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets
from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError
from flatgd.evaluation.summary import Settings, gaps
from flatgd.pipeline.pipeline import Pipeline
from flatgd.studies.landscape import write_study

QUESTIONS = {"missing_negatives": "its toxic replies missing", "left_out": "left out"}


def study_generalisation(pipeline: Pipeline) -> Path:
    """Train and measure every variant; returns the study's file. Finished variants are kept, and an
    interrupted study resumes."""
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
            "generalisation: no data set of data.policy can be held out. It must also be in "
            "data.test, by the same name, and data.policy needs another data set with safe and "
            "toxic replies."
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
    rows: list[GapRow] = []
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
        rows += [{**row, "question": question} for row in gaps(seen, unseen, settings)]
    scores = [*map(layout.scores, recipe.methods)]
    return write_study(pipeline, "generalisation", scores, {"rows": rows})


def _tested(sets: Sets) -> list[str]:
    """The policy's data sets that have a test set of the same name."""
    tested = {row.source for row in sets.test}
    return [name for name in dict.fromkeys(r.source for r in sets.policy) if name in tested]


def _without(sets: Sets, source: str, question: str) -> list[Dialogue]:
    if question == "left_out":
        return [row for row in sets.policy if row.source != source]
    return [row for row in sets.policy if row.source != source or row.is_safe]


def _is_enough(policy: list[Dialogue], of: list[Dialogue]) -> bool:
    """Whether both labels are left, and something was left out."""
    return {True, False} <= {row.is_safe for row in policy} and len(policy) < len(of)


def _scores(root: Path, recipe: Recipe, source: str) -> Scores:
    """The methods' score rows of one data set."""
    scores = scores_of(root, list(recipe.methods))
    return {
        name: [row for row in rows if row["dataset"] == source] for name, rows in scores.items()
    }
