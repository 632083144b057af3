"""How safety holds on what was not trained on, in two ways, for each data set that is also tested.

    missing negatives   the data set's toxic replies are left out of the policy's data: what the
                        paper tests with ProsocialDialog, which has none
    left out            the data set is left out altogether

Experts and methods are trained anew on what is left, with the first seed, and measured on that data
set's test rows; the whole run stands beside them. Judges and test rows stay the same.
"""

import json
from pathlib import Path
from typing import Any

from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError
from flatgd.evaluation.summary import Settings, gaps
from flatgd.io.records import read_jsonl
from flatgd.pipeline.pipeline import Run
from flatgd.studies.landscape import write_study

Row = dict[str, Any]
QUESTIONS = {"missing_negatives": "its toxic replies missing", "left_out": "left out"}


def study_generalisation(run: Run) -> Path:
    """Train and measure every variant, kept and resumed as a run is; returns the figures' file."""
    asked = [
        (s, q)
        for s in _tested(run)
        for q in QUESTIONS
        if _is_enough(_without(run, s, q), run.sets.policy)
    ]
    if not asked:
        raise RecipeError(
            "generalisation: no data set of data.policy can be held out; one is needed that is "
            "also in data.test, by the same name, beside another with safe and toxic replies"
        )
    run.all()
    judge = run.recipe.judges[0].label
    quality = json.loads((run.root / f"judges/{judge}/quality.json").read_text())
    settings = Settings(
        run.recipe.generate.samples,
        {judge: quality["threshold"]},
        run.recipe.report.resamples,
        run.recipe.seed,
        run.recipe.yardstick,
    )
    rows: list[Row] = []
    for source, question in asked:
        policy = _without(run, source, question)
        run.display.line("generalisation", f"{source}: {QUESTIONS[question]}")
        variant = run.variant(f"generalisation/{question}_{source}", policy=policy)
        for name in run.recipe.methods:
            variant.score(name)
        seen, unseen = (_scores(one, run, source) for one in (run, variant))
        rows += [{"question": question, **row} for row in gaps(seen, unseen, settings)]
    return write_study(run, "generalisation", list(run.recipe.methods), {"rows": rows})


def _tested(run: Run) -> list[str]:
    """Data sets of the policy's data that have a test set of the same name."""
    tested = {row.source for row in run.sets.test}
    return [name for name in dict.fromkeys(r.source for r in run.sets.policy) if name in tested]


def _without(run: Run, source: str, question: str) -> list[Dialogue]:
    if question == "left_out":
        return [row for row in run.sets.policy if row.source != source]
    return [row for row in run.sets.policy if row.source != source or row.is_safe]


def _is_enough(policy: list[Dialogue], of: list[Dialogue]) -> bool:
    """Whether there is something to learn from, and something was taken away."""
    return {True, False} <= {row.is_safe for row in policy} and len(policy) < len(of)


def _scores(one: Run, whole: Run, source: str) -> dict[str, list[Row]]:
    return {
        name: [
            row for row in read_jsonl(one.root / f"scores/{name}.jsonl") if row["dataset"] == source
        ]
        for name in whole.recipe.methods
    }
