"""The backbone's own replies as policy data: which rows, which shares, what depends on it."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flatgd.artifacts.rows import SampledRow
from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.dialogue import Dialogue
from flatgd.errors import RecipeError
from flatgd.io.records import read_jsonl
from flatgd.judges.calibration import Calibration
from flatgd.pipeline import judge_stage
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.model_samples import with_own_replies
from flatgd.pipeline.pipeline import Pipeline

SHARE = ["sample={histories: 10, samples: 4, share: 1}", "methods={flatgd: {}}"]


class Unsure:
    """A judge in the loop that marks one reply in three, lets one pass and is unsure of one."""

    calibration = Calibration(1.0, 0.0, 0.6, 0.3, 1, 1)

    def score(self, pairs: Any, advance: Any) -> Any:
        return np.array([(0.1, 0.5, 0.9)[len(reply.encode()) % 3] for _, reply in pairs])


@pytest.fixture
def unsure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_stage, "load_judge", lambda *given: Unsure())


def data(safe: int, toxic: int) -> list[Dialogue]:
    labels = [True] * safe + [False] * toxic
    return [Dialogue(("hi",), f"d{n}", label, "t", "c") for n, label in enumerate(labels)]


def sampled(safe: int, toxic: int, unsure: int) -> list[SampledRow]:
    labels = [False] * safe + [True] * toxic + [None] * unsure
    return [
        {
            "dataset": "t", "conversation": "c", "system": "",
            "history": [{"role": "user", "content": "hi"}], "replies": [f"s{n}"],
            "probabilities": [0.0], "toxic": [label], "nll": [1.0],
        }
        for n, label in enumerate(labels)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("share", "own", "expected"),
    [
        # (data's safe, sampled safe, data's toxic, sampled toxic) of 40 safe and 20 toxic rows
        (1.0, (10, 2, 5), (0, 10, 3, 2)),
        (0.5, (10, 2, 5), (10, 10, 8, 2)),
        (
            0.2,
            (40, 0, 0),
            (40, 10, 20, 0),
        ),  # the data's 40 leave room for 10; 25 toxic are not there
        (1.0, (4, 7, 0), (0, 4, 0, 7)),
        (1.0, (0, 3, 3), (0, 0, 0, 3)),
    ],
)
def test_the_share_of_own_replies(
    share: float, own: tuple[int, int, int], expected: tuple[int, ...]
) -> None:
    rows = with_own_replies(data(40, 20), sampled(*own), share, 0)
    counts = Counter((bool(row.is_safe), row.reply[0]) for row in rows)
    order = [(True, "d"), (True, "s"), (False, "d"), (False, "s")]
    assert tuple(counts[key] for key in order) == expected
    assert len(set(rows)) == len(rows)
    assert rows == with_own_replies(data(40, 20), sampled(*own), share, 0)


@pytest.mark.parametrize(("threshold", "f1"), [(0.6, 0.3), (0.3, 0.6)])
def test_a_judge_labels_what_it_is_sure_of(threshold: float, f1: float) -> None:
    label = Calibration(1.0, 0.0, threshold, f1, 1, 1).label
    assert [label(p) for p in (0.0, 0.3, 0.31, 0.6, 0.61)] == [False, False, None, None, True]


@pytest.mark.usefixtures("unsure")
def test_methods_learn_the_backbones_own_replies_and_experts_the_datas(recipe_file: Path) -> None:
    methods = "methods={flatgd: {}, data: {method: clean, share: 0}}"
    words = ["train", str(recipe_file), "--set", SHARE[0], "--set", methods]
    told = CliRunner().invoke(app, words, catch_exceptions=False)
    assert "left out, the judge is unsure" in told.output
    plan = Pipeline(load_recipe(recipe_file, [SHARE[0], methods])).context.plan
    rows = list(read_jsonl(plan.recipe.output / "sampled/backbone.jsonl"))
    own = {
        reply
        for row in rows
        for reply, label in zip(row["replies"], row["toxic"], strict=True)
        if label is False
    }
    given = {row.reply for row in plan.sets.policy if row.is_safe}
    for name, expected in (("flatgd", own), ("data", given), ("clean_expert", given)):
        assert {row.reply for row in plan.rows(name) if row.is_safe} == expected
    assert any(not row.is_safe for row in plan.rows("flatgd"))
    assert plan.fingerprint("data") == plan.fingerprint("clean_expert")


@pytest.mark.usefixtures("unsure")
def test_another_share_trains_again_and_samples_once(recipe_file: Path) -> None:
    words = ["train", str(recipe_file), "--set", SHARE[1], "--set"]
    CliRunner().invoke(app, [*words, SHARE[0]], catch_exceptions=False)
    half = SHARE[0].replace("share: 1", "share: 0.5")
    told = CliRunner().invoke(app, [*words, half], catch_exceptions=False)
    assert "sampled/backbone" not in told.output
    assert "methods/flatgd" in told.output
    told = CliRunner().invoke(app, [*words, half], catch_exceptions=False)
    assert "methods/flatgd" not in told.output


def test_a_backbone_without_safe_replies_is_told(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unsure, "score", lambda self, pairs, advance: np.ones(len(pairs)))
    monkeypatch.setattr(judge_stage, "load_judge", lambda *given: Unsure())
    with pytest.raises(RecipeError, match="finds no safe reply of the backbone"):
        Pipeline(load_recipe(recipe_file, SHARE)).models.train("flatgd")


@pytest.mark.usefixtures("unsure")
def test_a_reply_without_an_end_teaches_none(recipe_file: Path) -> None:
    """Replies are sampled beyond what is trained on, so that one without an end is cut."""
    job = Pipeline(load_recipe(recipe_file, [*SHARE, "max_reply_tokens=16"]))
    job.models.train("flatgd")
    recipe, plan = job.context.recipe, job.context.plan
    made = job.context.load_model(recipe.backbone)[1]
    long = [row for row in plan.rows("flatgd") if row.is_safe and len(row.reply) > 20]
    assert long
    for example in made.encode_all(long):
        assert len(example.reply_ids) == 16
        assert made.tokenizer.eos_token_id not in example.reply_ids


@pytest.mark.parametrize("share", ["2", "-0.1", "half"])
def test_a_share_out_of_range_is_refused(recipe_file: Path, share: str) -> None:
    overrides = [f"methods={{clean: {{share: {share}}}}}"]
    with pytest.raises(RecipeError, match=r"share: expected a number in 0\.\.1"):
        load_validated(load_recipe(recipe_file, overrides))
