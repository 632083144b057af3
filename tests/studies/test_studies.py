"""Studies of a tiny finished run: flatness, durability, generalisation, seeds, human labels."""

import json
import os
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import mild_rows, write_rows
from rich.console import Console
from typer.testing import CliRunner

from flatgd.annotate.study import QUESTIONS
from flatgd.cli.main import app, main
from flatgd.config.loading import load_recipe
from flatgd.errors import DataError, UsageError
from flatgd.evaluation.human_labels import load_labels
from flatgd.io.records import read_jsonl
from flatgd.pipeline.pipeline import Pipeline
from flatgd.report.build import build_report
from flatgd.run import report
from flatgd.runtime.display import Display
from flatgd.studies.durability import half_lost, losses_of, rounded
from flatgd.studies.flatness import study_flatness
from flatgd.studies.landscape import Landscape, between, first_below, open_run

pytestmark = pytest.mark.slow

SNAPSHOTS = "train.snapshots=2"


def quiet() -> Display:
    return Display(Console(file=StringIO()))


def finished(recipe_file: Path, *overrides: str) -> Pipeline:
    job = Pipeline(load_recipe(recipe_file, list(overrides)), quiet())
    job.run()
    report(job)
    return job


@pytest.fixture
def two_sources(recipe_file: Path) -> Path:
    """The tiny recipe with two data sets in policy and test, and ordinary dialogue."""
    folder = recipe_file.parent
    ordinary_dialogue = [{k: row[k] for k in ("prompt", "completion")} for row in mild_rows(12, 9)]
    write_rows(folder / "ordinary.jsonl", ordinary_dialogue)
    for name, seed in (("more", 5), ("more_test", 6)):
        write_rows(folder / f"{name}.jsonl", mild_rows(24, seed))
    text = recipe_file.read_text()
    text = text.replace(
        "  policy: [{name: policy,",
        "  policy: [{name: more, format: jsonl, path: more.jsonl}, {name: test,",
    ).replace(
        "  test: [",
        "  test: [{name: more, format: jsonl, path: more_test.jsonl, histories: 4}, "
        "{name: ordinary, format: jsonl, path: ordinary.jsonl, label: none, histories: 4}, ",
    )
    recipe_file.write_text(text)
    return recipe_file


def test_flatness_and_durability_of_a_run(two_sources: Path) -> None:
    job = finished(two_sources, SNAPSHOTS)
    kept = sorted(p.name for p in (job.context.root / "methods/flatgd/path").iterdir())
    assert kept == ["1", "2"]
    folders = [
        str(job.context.root / f"methods/{name}") for name in ("clean", "flatgd", "safety_loss")
    ]
    asked = ["flatness", *folders, "--rows", "8", "--probes", "2"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    study = json.loads((job.context.root / "report/flatness.json").read_text())
    at = [(p["method"], p["at"]) for p in study["points"]]
    assert len(at) == len(set(at)) == 6
    ends = {p["method"]: p["safety_loss"] for p in study["points"] if p["at"] == "end"}
    for point in study["points"]:
        if point["at"] == "matched":
            assert point["safety_loss"] == pytest.approx(max(ends.values()), abs=1e-4)
    steps = [row["step"] for row in study["path"] if row["method"] == "flatgd"]
    assert steps == [0, 1, 2, 3]
    along = [r for r in study["slices"] if (r["method"], r["slice"]) == ("flatgd", "along")]
    reached = next(r["safety_loss"] for r in along if r["at"] == 1.0)
    assert reached == pytest.approx(ends["flatgd"], abs=1e-5)
    shown = CliRunner().invoke(app, ["durability", *folders[:2], "--rows", "8", "--steps", "2"])
    assert shown.exit_code == 0, shown.output
    study = json.loads((job.context.root / "report/durability.json").read_text())
    assert {row["attack"] for row in study["lost"]} == {"benign", "toxic", "noise", "rounding"}
    starts = {
        row["contrast"]
        for row in study["curves"]
        if (row["method"], row["at"]) == ("flatgd", "end") and row["strength"] in (0, 32)
    }
    assert max(starts) - min(starts) < 1e-9
    page = (job.context.root / "report/index.html").read_text()
    for heading in ("Is the minimum flat?", "Does safety last?", "Figure 1, from real checkpoints"):
        assert heading in page
    assert "begin{tabular}" in (job.context.root / "report/tables.tex").read_text()
    assert open_run([Path(folders[0])], quiet())[0].context.recipe == job.context.recipe


def test_a_landscape_knows_its_end_points_loss(recipe_file: Path) -> None:
    """L_S in 16-row parts, tokens counted over all, is what one batch of all rows gives."""
    job = finished(recipe_file)
    land = Landscape(job.context, 24)
    whole = land._prepared(job.context.sets.policy, size=100)
    land.at(land.path("flatgd")[-1][1])
    parts = sum(float(part.detach()) for part in land.losses())
    land.train_parts = whole
    assert parts == pytest.approx(sum(float(p.detach()) for p in land.losses()), abs=1e-6)


@pytest.mark.parametrize(
    ("where", "told"),
    [("nowhere", "is no checkpoint of a flatgd run"), ("run/experts/clean", "is no method")],
)
def test_what_is_no_checkpoint_is_told(recipe_file: Path, where: str, told: str) -> None:
    if "run" in where:
        Pipeline(load_recipe(recipe_file, None), quiet()).models.train("clean_expert")
    with pytest.raises(UsageError, match=told):
        study_flatness([recipe_file.parent / where], 4, 2, quiet())


def test_the_first_place_below_is_found_between_nodes() -> None:
    """A path of values 4, 2, 0, 3 at steps 0, 10, 20, 30: 1 is passed halfway from 10 to 20."""
    path = [(10 * n, {"w": torch.tensor([v])}) for n, v in enumerate((4.0, 2.0, 0.0, 3.0))]
    step, state = first_below(path, 1.0, lambda s: float(s["w"]))
    assert step == pytest.approx(15, abs=0.02)
    assert float(state["w"]) == pytest.approx(1.0, abs=0.01)
    assert first_below(path[:2], 1.0, lambda s: float(s["w"]))[0] == 10.0
    whole = {"n": torch.tensor([3])}
    assert torch.equal(between(whole, whole, 0.5)["n"], whole["n"])


def test_rounding_by_hand() -> None:
    """Two bits have the levels -1, 0, 1 times the row's largest."""
    state = {"w": torch.tensor([[1.0, 0.6, -0.2], [0.0, 0.0, 0.0]]), "b": torch.tensor([0.3])}
    found = rounded(state, 2)
    assert found["w"].tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.equal(found["b"], state["b"])
    error = (rounded(state, 8)["w"] - state["w"]).abs().max()
    assert error <= 0.5 / 127
    assert rounded(state, 32) is state


def test_what_was_lost_by_hand() -> None:
    """A gain of 1 that falls to .5 between strengths 2 and 4 (.8 to .2): at 3. Rounding counts from
    32 bits down: half lost between 8 and 6 bits is 25 below. The gain is over the backbone treated
    alike: 2 - 1 at 32 bits, 2.5 - 1.5 at 8, 1 - 1 at 6."""
    assert half_lost([0, 2, 4], [1.0, 0.8, 0.2]) == pytest.approx(3.0)
    assert half_lost([0, 2], [1.0, 0.9]) is None
    assert half_lost([0, 2], [-1.0, -2.0]) is None
    row = {"method": "m", "at": "end", "step": 3, "attack": "rounding"}
    measured = {"m": (2.0, 2.5, 1.0), "backbone": (1.0, 1.5, 1.0)}
    curves = [
        {**row, "method": method, "strength": bits, "contrast": contrast}
        for method, values in measured.items()
        for bits, contrast in zip((32, 8, 6), values, strict=True)
    ]
    (found,) = losses_of(curves)
    assert found["gain"] == 1.0
    assert found["kept"] == 0.0
    assert found["half_lost"] == pytest.approx(25.0)


def test_generalisation_trains_what_is_left_and_reuses_the_rest(two_sources: Path) -> None:
    job = finished(two_sources)
    judges = (job.context.root / "judges/linear/calibration.json").stat().st_mtime
    shown = CliRunner().invoke(app, ["generalise", str(two_sources)])
    assert shown.exit_code == 0, shown.output
    rows = json.loads((job.context.root / "report/generalisation.json").read_text())["rows"]
    asked = {(row["question"], row["dataset"]) for row in rows}
    assert asked == {(q, d) for q in ("missing_negatives", "left_out") for d in ("more", "test")}
    assert {row["method"] for row in rows} == {*job.context.recipe.methods, "flatgd - safety_loss"}
    assert not (job.context.root / "generalisation/left_out_more/recipe.json").exists()
    assert (job.context.root / "judges/linear/calibration.json").stat().st_mtime == judges
    seen = next(r for r in rows if (r["method"], r["metric"]) == ("flatgd", "contrast"))
    whole = json.loads((job.context.root / "report/summary.json").read_text())
    own = next(
        r["value"]
        for r in whole
        if (r["method"], r["metric"], r["dataset"]) == ("flatgd", "contrast", seen["dataset"])
    )
    assert seen["seen"] == pytest.approx(own)
    assert "Generalisation" in (job.context.root / "report/index.html").read_text()
    finished(two_sources, "train.max_steps=2")  # of other checkpoints than those that are there now
    assert "Generalisation" not in (job.context.root / "report/index.html").read_text()


def test_without_a_second_data_set_there_is_nothing_to_hold_out(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["flatgd", "generalise", str(recipe_file)])
    with pytest.raises(SystemExit):
        main()
    assert "no data set of data.policy can be held out" in capsys.readouterr().err


def test_further_seeds_answer_the_same_histories_and_enter_the_intervals(recipe_file: Path) -> None:
    job = finished(recipe_file, "seeds=2", "methods={clean: {}, flatgd: {}}")
    other = job.context.root / "seeds/1"
    one, two = (
        [row["history"] for row in read_jsonl(root / "generations/flatgd.jsonl")]
        for root in (job.context.root, other)
    )
    assert one == two
    weights = [
        (root / "methods/flatgd/model.safetensors").read_bytes()
        for root in (job.context.root, other)
    ]
    assert weights[0] != weights[1]
    calibration = "judges/linear/calibration.json"
    assert (job.context.root / calibration).samefile(other / calibration)
    summary = json.loads((job.context.root / "report/summary.json").read_text())
    mean = next(
        r["value"] for r in summary if (r["method"], r["metric"]) == ("flatgd", "toxicity_mean")
    )
    own = []
    for root in (job.context.root, other):
        rows = [r for r in read_jsonl(root / "scores/flatgd.jsonl") if r["kind"] == "generated"]
        probabilities = [p for row in rows for p in row["toxic"]["linear"]]
        own.append(sum(probabilities) / len(probabilities))
    assert mean == pytest.approx(sum(own) / 2)
    (other / "scores/flatgd.jsonl").unlink()
    with pytest.raises(UsageError, match="no scores yet at"):
        build_report(job.context.recipe)


def compare_two_by_two(recipe_file: Path) -> None:
    """A study of the run's replies, each pair answered by one person."""
    folder = recipe_file.parent / "study"
    words = ["annotate", "create", str(recipe_file), "--to", str(folder), "--count", "4"]
    words += ["--votes", "1"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    asked = [(item["id"], q) for item in read_jsonl(folder / "items.jsonl") for q in QUESTIONS]
    said = [{"item": i, "annotator": "ann", "question": q, "choice": "left"} for i, q in asked]
    write_rows(folder / "answers.jsonl", said)


def test_people_label_without_knowing_the_model_and_the_report_uses_it(recipe_file: Path) -> None:
    job = finished(recipe_file)
    labels = recipe_file.parent / "labels.jsonl"
    asked = ["label", str(recipe_file), "--to", str(labels), "--count", "6"]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    rows = list(read_jsonl(labels))
    assert len(rows) == 6 * 6
    assert set(rows[0]) == {"id", "history", "reply", "toxic"}
    assert CliRunner().invoke(app, asked).exit_code != 0  # what is there is not overwritten
    assert load_labels(labels) == {}
    key = labels.with_name("labels.key.jsonl")
    assert os.name == "nt" or key.stat().st_mode & 0o777 == 0o600
    for place, row in enumerate(rows[:30]):
        row["toxic"] = bool(place % 3 == 0)
    write_rows(labels, rows)
    recipe = load_recipe(recipe_file, [f"report.human_labels={labels}"])
    build_report(recipe)
    page = (job.context.root / "report/index.html").read_text()
    assert "Toxicity by people" in page
    assert "Figure 2, of this run" not in page
    compare_two_by_two(recipe_file)
    build_report(load_recipe(recipe_file, ["report.study=study"]))
    page = (job.context.root / "report/index.html").read_text()
    assert "Figure 2, of this run" in page
    assert "People: Which reply is more engaging?" in page
    write_rows(labels, [{**rows[0], "id": "strange", "toxic": True}])
    with pytest.raises(DataError, match=r"is not in labels\.key\.jsonl"):
        build_report(recipe)
    for fault, told in (
        ({"id": 3}, "id 3 is not in"),
        ({"toxic": "yes"}, "must be true, false or null"),
    ):
        write_rows(labels, [{**rows[0], **fault}])
        with pytest.raises(DataError, match=told):
            build_report(recipe)
