"""`data: eval:`: rows of a recipe that are evaluated in training, apart from all others."""

from pathlib import Path

import pytest
from conftest import mild_rows, write_rows

from flatgd.config.loading import load_recipe
from flatgd.config.recipe import Recipe
from flatgd.errors import DataError, RecipeError
from flatgd.io.records import read_jsonl
from flatgd.pipeline.loader import check_offline, load_validated
from flatgd.pipeline.pipeline import Pipeline
from flatgd.run import report

BEST = [
    "train.eval_strategy=steps", "train.eval_steps=1", "train.save_strategy=steps",
    "train.save_steps=1", "train.load_best_model_at_end=true",
]  # fmt: skip


def recipe(file: Path, *sets: str, rows: list[dict] | None = None) -> Recipe:
    write_rows(file.parent / "held.jsonl", rows or mild_rows(24, 9))
    held = "data.eval=[{name: held, format: jsonl, path: held.jsonl}]"
    return load_recipe(file, [held, *sets])


def test_evaluation_rows_give_way_to_the_others(recipe_file: Path) -> None:
    """By conversation and by exchange; counted and told. The other sets stay as they are."""
    policy, test = mild_rows(24, 1), mild_rows(24, 3)
    rows = [
        *mild_rows(8, 9),
        *[{**row, "completion": "other words", "prompt": ["new"]} for row in policy[:2]],
        {**test[5], "conversation": "renamed"},
        {**mild_rows(24, 2)[3], "conversation": "renamed too"},
    ]
    sets = load_validated(recipe(recipe_file, BEST[0], BEST[1], rows=rows))
    assert len(sets.eval) == 8
    assert sets.dropped["eval: also in policy, judge or test"] == 4
    assert ("data: left out", "4 of eval: also in policy, judge or test") in sets.described()
    assert ("data: eval", "8 replies, 4 toxic, 4 conversations") in sets.described()
    plain = load_validated(load_recipe(recipe_file))
    assert (plain.policy, plain.judge, plain.test) == (sets.policy, sets.judge, sets.test)
    others = {row.conversation for row in (*sets.policy, *sets.judge, *sets.test)}
    assert others.isdisjoint(row.conversation for row in sets.eval)


def test_nothing_is_left_to_evaluate(recipe_file: Path) -> None:
    with pytest.raises((DataError, RecipeError), match=r"data\.eval: needs safe and toxic replies"):
        load_validated(recipe(recipe_file, *BEST, rows=mild_rows(24, 1)))


@pytest.mark.parametrize(
    ("sets", "told"),
    [
        ([], "data.eval: nothing is evaluated on it; set train.eval_strategy"),
        (["train.eval_strategy=no"], "data.eval: nothing is evaluated on it"),
        (["data.eval=[]", *BEST], "experts: eval_strategy needs rows to evaluate; give data.eval"),
        (["data.eval.0.weight=2", *BEST], "eval: 'held' has a weight; eval sets are taken whole"),
        (["data.eval.0.speaker=all", *BEST], "eval: 'held' takes speaker 'all'"),
        (["data.eval.0.histories=2", *BEST], "'held' has histories, which is for test sets"),
        (["data.eval.0.path=nowhere.jsonl", *BEST], "nowhere.jsonl: no such file"),
        ([*BEST, "train.save_steps=2", "train.eval_steps=3"], "round multiple"),
        (
            [BEST[0], "train.early_stopping_patience=0"],
            "early_stopping_patience must be a whole number >= 1",
        ),
    ],
)
def test_what_does_not_fit_is_told(recipe_file: Path, sets: list[str], told: str) -> None:
    with pytest.raises((DataError, RecipeError), match=told):
        load_validated(recipe(recipe_file, *sets))


def test_data_that_is_not_here_yet_is_told_offline(recipe_file: Path) -> None:
    told = check_offline(recipe(recipe_file, "data.eval.0.path=nowhere.jsonl", *BEST))
    assert [line for line in told if "nowhere.jsonl (not here" in line]


def test_a_run_evaluates_and_keeps_the_best(recipe_file: Path) -> None:
    """Each model on rows of the labels that it learns from, which are part of its key."""
    job = Pipeline(recipe(recipe_file, *BEST, "train.early_stopping_patience=2"))
    job.run()
    report(job)
    for place, figure in (("methods/flatgd", "eval_js_toxic"), ("experts/toxic", "eval_lm")):
        entries = list(read_jsonl(job.context.root / place / "evaluation.jsonl"))
        assert [entry["step"] for entry in entries] == [1, 2, 3]
        assert all(figure in entry for entry in entries)
    assert {row.is_safe for row in job.context.plan.eval_rows("toxic_expert")} == {False}
    assert {row.is_safe for row in job.context.plan.eval_rows("clean")} == {True}
    assert {row.is_safe for row in job.context.plan.eval_rows("flatgd")} == {True, False}
    assert not list((job.context.root / "methods/flatgd").glob("checkpoint-*"))
    other = Pipeline(recipe(recipe_file, *BEST, "train.early_stopping_patience=2",
                          rows=mild_rows(24, 9)[:8]))  # fmt: skip
    assert other.context.plan.fingerprint("flatgd") != job.context.plan.fingerprint("flatgd")


def test_a_recipe_without_it_keeps_its_keys(recipe_file: Path) -> None:
    """Work that is done stays done."""
    plain = Pipeline(load_recipe(recipe_file))
    key = plain.context.plan.fingerprint("flatgd")
    del plain
    given = Pipeline(
        recipe(recipe_file, "methods={safety_loss: {eval_strategy: epoch}, flatgd: {}}")
    )
    assert given.context.plan.fingerprint("flatgd") == key
