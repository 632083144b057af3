"""What a run's models learn from, and the digests that finished models are found by."""

import dataclasses
from pathlib import Path

import pytest
from conftest import mild_rows

from flatgd.artifacts.store import fingerprint_of
from flatgd.config.loading import load_recipe
from flatgd.data.jsonl import dialogues_from_row
from flatgd.dialogue import Dialogue, Turn
from flatgd.pipeline import plan as plans
from flatgd.pipeline.context import Context
from flatgd.pipeline.plan import rows_digest


def rows(count: int) -> list[Dialogue]:
    made = [row for given in mild_rows(count, seed=1) for row in dialogues_from_row(given)]
    odd = Dialogue((Turn("assistant", "caf\u00e9"),), '"\n', None, "s", "c", "human", "x", "f:1")
    return [odd, *made]


@pytest.mark.parametrize("count", [0, 1, 5, 1500])
def test_the_digest_of_rows_is_that_of_their_json(count: int) -> None:
    """Finished runs have it in their manifests."""
    given = rows(1500)[:count]
    as_tuples = [dataclasses.astuple(dataclasses.replace(row, where="")) for row in given]
    assert rows_digest(given) == rows_digest(iter(given)) == fingerprint_of(as_tuples)


def test_rows_with_the_same_labels_are_digested_once(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digested = []

    def counting(given: list[Dialogue]) -> str:
        digested.append({row.is_safe for row in given})
        return rows_digest(given)

    monkeypatch.setattr(plans, "rows_digest", counting)
    methods = "methods={safety_loss: {}, flatgd: {}, clean: {}}"
    plan = Context(load_recipe(recipe_file, [methods])).plan
    for name in ("clean_expert", "toxic_expert", "safety_loss", "flatgd", "clean"):
        plan.fingerprint(name)
    assert digested == [{True}, {False}, {True, False}]
    assert plan.fingerprint("clean") == plan.fingerprint("clean_expert")
    assert {row.is_safe for row in plan.rows("toxic_expert")} == {False}
    assert {row.is_safe for row in plan.rows("clean")} == {True}
    assert len(plan.rows("flatgd")) == len(plan.sets.policy)
