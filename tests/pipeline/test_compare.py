"""Every system through one door: a recipe with all of them, what it costs, another attribute."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, mild_rows, tiny_blenderbot, write_rows
from rich.console import Console
from transformers import AutoModelForSeq2SeqLM

from flatgd.artifacts.layout import IN_LOOP_JUDGE
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import load_recipe
from flatgd.config.source import Source
from flatgd.data.sets import load_source
from flatgd.dialogue import Dialogue, as_turns
from flatgd.errors import RecipeError, UnsupportedError, UsageError
from flatgd.io.records import read_jsonl
from flatgd.judges.calibration import Calibration, load_calibration
from flatgd.methods import METHODS, Click, Cringe
from flatgd.pipeline import judge_stage
from flatgd.pipeline.model_samples import contrasting_pairs, judged_replies
from flatgd.pipeline.pipeline import Pipeline
from flatgd.publish.hub import ModelPackage
from flatgd.report.compare import Column, _dots, costs
from flatgd.run import report
from flatgd.runtime.display import Display
from flatgd.studies.landscape import open_run
from flatgd.training import FlatGDConfig, FlatGDTrainer
from flatgd.training.micro_batches import split_batch
from flatgd.training.penalty_choice import RHOS

pytestmark = pytest.mark.slow

SYSTEMS = {
    **{name: {} for name in METHODS if name != "checkpoint"},
    "click": {"sampled_from": "clean"},
    "cringe_again": {"method": "cringe", "start": "cringe", "sampled_from": "cringe"},
    "safety_loss_kl": {"method": "safety_loss", "divergence": "kl"},
    "dexperts_clean": {"method": "dexperts", "start": "clean"},
    "baseline": {"method": "clean"},  # a second name for one work
}


def run(recipe_file: Path, *overrides: str) -> tuple[Pipeline, str]:
    console = Console(record=True, width=200, file=StringIO())
    job = Pipeline(load_recipe(recipe_file, list(overrides)), Display(console))
    job.run()
    report(job)
    return job, console.export_text()


def settings(output: str = "run") -> list[str]:
    return [
        f"methods={json.dumps(SYSTEMS)}",
        "sample={histories: 10, samples: 4}",
        f"output={output}",
    ]


class ByFirstLetter:
    """A judge in the loop that finds something to mark in the gibberish of untrained models."""

    calibration = Calibration(1.0, 0.0, 0.5, 0.5, 1, 1)

    def score(self, pairs: Any, advance: Any) -> Any:
        return np.array([float(sum(reply.encode()) % 2) for _, reply in pairs])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, backbone_folder: Path) -> Pipeline:
    folder = tmp_path_factory.mktemp("compare")
    for name, seed in (("policy", 1), ("judge", 2), ("test", 3)):
        write_rows(folder / f"{name}.jsonl", mild_rows(24, seed))
    parts = "\n".join(
        f"  {name}: [{{name: {name}, format: jsonl, path: {name}.jsonl}}]"
        for name in ("policy", "judge", "test")
    )
    (folder / "recipe.yaml").write_text(
        f"name: all\noutput: run\nbackbone: {backbone_folder}\nscorer: {backbone_folder}\n"
        f"data:\n{parts}\nmax_reply_tokens: 32\nmax_history_tokens: 64\n"
        "train: {max_steps: 3, per_device_train_batch_size: 8, micro_batch_size: 3, "
        "learning_rate: 1e-3}\n"
        "generate: {histories: 6, samples: 2, max_new_tokens: 8}\nreport: {resamples: 100}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_stage, "load_judge", lambda *given: ByFirstLetter())
        return run(folder / "recipe.yaml", *settings())[0]


def test_every_system_is_measured(finished: Pipeline) -> None:
    summary = json.loads((finished.context.root / "report/summary.json").read_text())
    for name in SYSTEMS:
        metrics = {row["metric"] for row in summary if row["method"] == name}
        assert {"toxicity_any2", "contrast", "perplexity", "div1", "div2"} <= metrics, name


def test_systems_differ_from_the_backbone(finished: Pipeline) -> None:
    own = {
        n: (finished.context.root / f"scores/{n}.jsonl").read_bytes()
        for n in finished.context.recipe.models
    }
    assert len(set(own.values())) == len(own) - 2  # clean and baseline are the clean expert


def test_every_checkpoint_loads_in_plain_transformers(finished: Pipeline) -> None:
    for name in SYSTEMS:
        folder = finished.context.root / f"methods/{name}"
        if (folder / "config.json").exists():
            model, told = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
            assert not told["unexpected_keys"], name
            assert "flatgd_role" not in model.config.to_dict()
        else:
            assert name.startswith(("dexperts", "gedi"))
    assert (finished.context.root / "methods/director/director.safetensors").exists()


def test_a_second_run_does_nothing(finished: Pipeline) -> None:
    recipe = finished.context.root.parent / "recipe.yaml"
    _, told = run(recipe, *settings())
    assert "methods/" not in told
    assert "sampled/" not in told


def test_a_changed_strength_makes_that_system_anew_and_no_other(finished: Pipeline) -> None:
    changed = {**SYSTEMS, "gedi": {"strength": 5}}
    job = Pipeline(load_recipe(finished.context.root.parent / "recipe.yaml", [*settings()[1:]]))
    again = load_recipe(
        finished.context.root.parent / "recipe.yaml",
        [f"methods={json.dumps(changed)}", *settings()[1:]],
    )
    plan = Pipeline(again).context.plan
    keys = {
        name: plan.fingerprint(name) == finished.context.plan.fingerprint(name) for name in SYSTEMS
    }
    assert [name for name, is_same in keys.items() if not is_same] == ["gedi"]
    assert job.context.plan.fingerprint("clean") == finished.context.plan.fingerprint("clean")


def test_iterative_goes_on_from_where_it_was(finished: Pipeline) -> None:
    plan = finished.context.plan
    assert plan.model("cringe_again").base == str(finished.context.root / "methods/cringe")
    assert plan.model("cringe_again").needs == ("cringe",)
    assert len(plan.rows("cringe_again")) > len(plan.rows("cringe"))


def test_the_judge_in_the_loop_is_of_the_policy_s_rows(finished: Pipeline) -> None:
    calibration = load_calibration(finished.context.root / IN_LOOP_JUDGE)
    assert calibration.safe + calibration.toxic == len(finished.context.sets.policy)
    assert (finished.context.root / IN_LOOP_JUDGE).parent.name == "sampled"
    rows = list(read_jsonl(finished.context.root / "sampled/clean.jsonl"))
    policy = {row.history for row in finished.context.sets.policy}
    assert {as_turns(row["history"]) for row in rows} <= policy
    assert all(len(row["toxic"]) == len(row["nll"]) == 4 for row in rows)


def test_costs(finished: Pipeline) -> None:
    found = costs(finished.context.recipe)
    search = 1 + 2 * len(RHOS)  # of the step length
    assert found["flatgd"]["gradient_evaluations"] == 1 + 2 * 2 + search  # a step of warm-up
    assert found["safety_loss"]["gradient_evaluations"] == 3
    assert found["dexperts"]["gradient_evaluations"] == 0
    assert [found[n]["models"] for n in ("backbone", "dexperts", "director")] == [1, 3, 1]
    assert found["gedi"]["weights_mb"] == pytest.approx(3 * found["backbone"]["weights_mb"])
    assert found["safety_loss"]["needed_seconds"] > found["safety_loss"]["seconds"] > 0
    assert found["click"]["needed_seconds"] > found["click"]["seconds"]
    assert all(row["speed"] > 0 for row in found.values())
    assert "Compared on test" in (finished.context.root / "report/tables.md").read_text()


def test_a_twin_s_cost_is_that_of_the_work_it_is(finished: Pipeline) -> None:
    stages = ArtifactStore(finished.context.root)
    assert stages.cost("methods/clean") == stages.cost("experts/clean") != {}


def test_marks_go_by_what_is_shown() -> None:
    column = Column("x", "x ↓", 2, -1)
    assert _dots({"a": 0.101, "b": 0.104, "c": 0.2, "d": 0.3}, column) == {
        "a": "●",
        "b": "●",
        "c": "○",
    }
    assert _dots({"a": 1.0, "b": 1.0}, column) == {}


@pytest.mark.parametrize("name", ["dexperts", "director"])
def test_what_needs_a_guide_is_not_published(finished: Pipeline, name: str) -> None:
    with pytest.raises(UnsupportedError, match="needs its guide at decoding time"):
        ModelPackage(finished.context.recipe, name, "someone/model")


def test_a_path_begins_at_the_backbone(finished: Pipeline) -> None:
    with pytest.raises(UsageError, match="cringe_again does not start at the backbone"):
        open_run([finished.context.root / "methods/cringe_again"])


def test_cards_tell_what_was_used(finished: Pipeline) -> None:
    def card(name: str) -> str:
        return (finished.context.root / f"methods/{name}/README.md").read_text()

    assert "flatness_weight 0.08" in card("gnp")
    assert "max_steps" not in card("task_arithmetic")
    assert "the checkpoint cringe, itself from" in card("cringe_again")
    assert "method **baseline**" in card("baseline")
    assert "method **clean**" in card("clean")  # twins share files, not cards


def test_a_trainer_wants_the_rows_that_its_method_learns_from(tmp_path: Path) -> None:
    rows = [Dialogue(("hi",), "hello", True, "t", "c")]
    kwargs = {"processing_class": byte_tokenizer(), "args": FlatGDConfig(str(tmp_path))}
    with pytest.raises(UnsupportedError, match="click learns from pairs"):
        FlatGDTrainer(tiny_blenderbot(), train_dataset=rows, method=Click(), **kwargs)
    with pytest.raises(UnsupportedError, match="cringe learns from replies"):
        FlatGDTrainer(
            tiny_blenderbot(), train_dataset=[(rows[0], rows[0])], method=Cringe(), **kwargs
        )


def test_what_was_not_trained_has_no_path_to_study(finished: Pipeline) -> None:
    with pytest.raises(UsageError, match="task_arithmetic was not trained"):
        open_run([finished.context.root / "methods/task_arithmetic"])


# Sampled replies


def sampled(replies: list[str], toxic: list[bool], nll: list[float]) -> dict[str, Any]:
    return {
        "dataset": "d",
        "conversation": "c",
        "system": "",
        "history": ["hi"],
        "replies": replies,
        "toxic": toxic,
        "nll": nll,
    }


def test_pairs_take_the_safe_reply_next_below_in_likelihood() -> None:
    """Toxic t1 (NLL 10): below it are s2 (12) and s3 (20), so s2. Toxic t2 (30): none is below, so
    the least likely safe one, s3. s1 (5) is likelier than both: in order already."""
    names = ["s1", "t1", "s2", "s3", "t2", ""]
    row = sampled(names, [False, True, False, False, True, False], [5, 10, 12, 20, 30, 40])
    pairs = [(safe.reply, toxic.reply) for safe, toxic in contrasting_pairs([row])]
    assert pairs == [("s2", "t1"), ("s3", "t2")]
    assert all(safe.is_safe and not toxic.is_safe for safe, toxic in contrasting_pairs([row]))


def test_histories_of_one_label_give_no_pairs() -> None:
    assert contrasting_pairs([sampled(["a", "b"], [True, True], [1, 2])]) == []
    assert contrasting_pairs([sampled(["a", "b"], [False, False], [1, 2])]) == []


def test_judged_replies_are_evened_out() -> None:
    rows = [sampled(["a", "b", "c", "d"], [True, False, False, False], [1, 1, 1, 1])] * 3
    drawn = judged_replies(rows, 0)
    assert [row.is_safe for row in drawn] == [True] * 3 + [False] * 3
    assert drawn == judged_replies(rows, 0)


@pytest.mark.parametrize("size", [1, 2, 3, 5, None])
def test_pairs_stay_together_in_micro_batches(size: int | None) -> None:
    pair = torch.tensor([-1, 0, 0, -1, 3, 3, -1, 5, 5])
    safe = torch.tensor([True, True, False, False, True, False, True, True, False])
    batch = {
        "input_ids": torch.arange(9)[:, None],
        "attention_mask": torch.ones(9, 1, dtype=torch.long),
        "targets": torch.ones(9, 1, dtype=torch.long),
        "decoder_input_ids": torch.ones(9, 1, dtype=torch.long),
        "is_safe": safe,
        "pair": pair,
    }
    parts = split_batch(batch, size)
    assert sorted(i for part in parts for i in part["input_ids"][:, 0].tolist()) == list(range(9))
    for part in parts:
        numbers = part["pair"][part["pair"] >= 0].view(-1, 2)
        assert (numbers[:, 0] == numbers[:, 1]).all()
        labels = part["is_safe"][part["pair"] >= 0].view(-1, 2)
        assert not labels[:, 0].any()
        assert labels[:, 1].all()


# Another attribute


def test_labels_by_what_a_reply_does(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "completion": "how are you?", "label": False},
        {"prompt": "hi", "completion": "fine.", "label": True},
        {"prompt": "hi", "completion": "no comment", "label": True},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)

    def labels(kind: str) -> list[bool | None]:
        source = Source(name="s", format="jsonl", path=path, label_by=kind)
        return [row.is_safe for row in load_source(source).rows]

    assert labels("question") == [True, False, False]
    assert labels("statement") == [False, True, True]
    assert labels("refusal") == [False, False, True]


def test_a_recipe_for_questions_runs_in_its_own_words(recipe_file: Path) -> None:
    for name in ("policy", "judge", "test"):
        path = recipe_file.parent / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for number, row in enumerate(rows):
            row["completion"] = "is it so?" if number % 3 else "it is so."
        write_rows(path, rows)
    by = [f"data.{part}.0.label_by=question" for part in ("policy", "judge", "test")]
    words = ["report.wanted=question", "report.unwanted=statement"]
    job, told = run(recipe_file, *by, *words, "methods={safety_loss: {}, dexperts: {}}")
    assert sum(row.is_safe for row in job.context.sets.policy) == 16
    tables = (job.context.root / "report/tables.md").read_text()
    assert "mean P(statement)" in tables
    assert "P(toxic)" not in tables
    assert "less likely" not in told


def test_nothing_to_learn_from_is_told(recipe_file: Path) -> None:
    """Gibberish of untrained models is toxic to no judge."""
    with pytest.raises(RecipeError, match="click: backbone gave no safe and toxic replies"):
        run(recipe_file, "methods={click: {}}", "sample={histories: 2, samples: 2}")
