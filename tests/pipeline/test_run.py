"""The main job on a tiny model: whole, resumed, killed, changed; and what the report says."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import mild_rows, write_rows
from rich.console import Console
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from typer.testing import CliRunner

from flatgd.cli.main import app, main
from flatgd.config.loading import load_recipe
from flatgd.data.sets import load_sets
from flatgd.errors import DataError, RecipeError, UsageError
from flatgd.io.records import read_jsonl
from flatgd.pipeline.pipeline import Pipeline
from flatgd.report.build import build_report
from flatgd.report.findings import findings as found
from flatgd.report.sentences import sentence
from flatgd.run import report
from flatgd.runtime.display import Display

MODELS = ["backbone", "clean_expert", "toxic_expert", "clean", "safety_loss", "flatgd"]


def run(recipe_file: Path, *overrides: str) -> tuple[Pipeline, str]:
    console = Console(record=True, width=200, file=StringIO())
    job = Pipeline(load_recipe(recipe_file, list(overrides)), Display(console))
    job.run()
    report(job)
    return job, console.export_text()


def test_the_main_job_leaves_what_it_promises(recipe_file: Path) -> None:
    job, told = run(recipe_file)
    root = job.context.root
    for name in MODELS:
        rows = list(read_jsonl(root / f"generations/{name}.jsonl"))
        assert len(rows) == 6
        assert all(len(row["replies"]) == 2 for row in rows)
        assert (root / f"scores/{name}.jsonl").exists()
    for folder in ("experts/clean", "experts/toxic", "methods/flatgd"):
        model = AutoModelForSeq2SeqLM.from_pretrained(root / folder)
        prompt = AutoTokenizer.from_pretrained(root / folder)("hello", return_tensors="pt")
        assert model.generate(**prompt, max_new_tokens=3).shape[0] == 1
        assert not list((root / folder).glob("*.bin"))
        assert not list((root / folder).glob("checkpoint-*"))
    assert "toxic" in json.loads((root / "experts/toxic/config.json").read_text())["flatgd_role"]
    clean, expert = (root / f"{p}/model.safetensors" for p in ("methods/clean", "experts/clean"))
    assert clean.read_bytes() == expert.read_bytes()
    assert "methods/clean              reused (same inputs)" in told
    summary = json.loads((root / "report/summary.json").read_text())
    assert set(summary[0]) == {
        "method",
        "dataset",
        "metric",
        "value",
        "low",
        "high",
        "p",
        "p_holm",
        "n",
        "excluded",
    }
    metrics = {row["metric"] for row in summary if row["method"] == "flatgd"}
    wanted = "toxicity_any2 toxicity_mean perplexity div1 div2 contrast"
    assert set(wanted.split()) <= metrics
    page = (root / "report/index.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert (root / "report/tables.md").read_text().startswith("# tiny")
    steps = list(read_jsonl(root / "methods/flatgd/training.jsonl"))
    assert [step["step"] for step in steps] == [1, 2, 3]


def test_a_finished_run_is_kept_and_a_change_redoes_only_what_hangs_on_it(
    recipe_file: Path,
) -> None:
    run(recipe_file)
    summary = recipe_file.parent / "run/report/summary.json"
    before = summary.read_bytes()
    _, told = run(recipe_file)
    assert "s)" not in told  # nothing was built
    assert summary.read_bytes() == before
    _, told = run(recipe_file, "methods.flatgd={penalty_share: 0.5}")
    built = [line.split()[1] for line in told.splitlines() if line.endswith("s)")]
    assert built == ["methods/flatgd", "generations/flatgd.jsonl", "scores/flatgd.jsonl"]
    assert 'methods: not set -> {"flatgd": {"penalty_share": 0.5}}; whatever depends on it' in told
    _, told = run(recipe_file, "generate.samples=1", "methods.flatgd={penalty_share: 0.5}")
    built = [line.split()[1].split("/")[0] for line in told.splitlines() if line.endswith("s)")]
    assert set(built) == {"generations", "scores"}


def test_two_runs_of_one_seed_agree_and_another_seed_differs(recipe_file: Path) -> None:
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        job, _ = run(recipe_file, f"output=run{number}", f"seed={seed}", "methods={flatgd: {}}")
        texts.append((job.context.root / "report/summary.json").read_text())
    assert texts[0] == texts[1] != texts[2]


def test_rows_that_cannot_be_read_are_left_out_if_asked(recipe_file: Path) -> None:
    policy = recipe_file.parent / "policy.jsonl"
    policy.write_text('{"prompt": "a"}\nnot JSON\n' + policy.read_text())
    with pytest.raises(DataError, match=r"policy\.jsonl:2: not valid JSON"):
        load_sets(load_recipe(recipe_file, None).data)
    told = CliRunner().invoke(app, ["run", str(recipe_file), "--skip-bad"])
    assert told.exit_code == 0, told.output
    assert "2 of rows that cannot be read (rejected.jsonl)" in told.output
    assert re.search(r"training example, target in .*\[masked.*\[ .*</s>\]", told.output)
    rejected = list(read_jsonl(recipe_file.parent / "run/rejected.jsonl"))
    assert [(Path(row["path"]).name, row["line"]) for row in rejected] == [
        ("policy.jsonl", 2),
        ("policy.jsonl", 1),
    ]
    assert "no reply" in rejected[1]["reason"]


def test_a_harmed_output_is_made_anew(recipe_file: Path) -> None:
    job, _ = run(recipe_file)
    before = (job.context.root / "report/summary.json").read_bytes()
    weights = job.context.root / "methods/flatgd/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    weights.write_bytes(content)
    (job.context.root / "judges/linear").joinpath("judge.json").unlink(missing_ok=True)
    _, told = run(recipe_file)
    assert (
        "methods/flatgd             model.safetensors has changed since it was saved; rebuilding"
        in told
    )
    assert (job.context.root / "report/summary.json").read_bytes() == before


SLOW = ["--set", "train.max_steps=24", "--set", "generate.histories=3"]
SLOW += ["--set", "methods={flatgd: {}}"]


def command(recipe_file: Path, output: str) -> list[str]:
    base = [sys.executable, "-m", "flatgd", "run", str(recipe_file), "--set", f"output={output}"]
    return [*base, *SLOW, "--set", "train.save_strategy=steps", "--set", "train.save_steps=3"]


@pytest.mark.slow
def test_killed_inside_a_method_it_goes_on_to_the_same_end(recipe_file: Path) -> None:
    """kill -9 once checkpoints of flatgd are there; the second run starts from one of them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(recipe_file, "whole"), check=True, capture_output=True, env=environment)
    process = subprocess.Popen(
        command(recipe_file, "killed"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    partial = recipe_file.parent / "killed/methods/flatgd.partial"
    deadline = time.monotonic() + 600  # no hurry on a busy machine
    while not list(partial.glob("checkpoint-*/trainer_state.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (recipe_file.parent / "killed/methods/flatgd").exists()
    again = subprocess.run(
        command(recipe_file, "killed"), check=True, capture_output=True, text=True, env=environment
    )
    assert "from checkpoint checkpoint-" in again.stdout
    one, other = (
        (recipe_file.parent / f"{name}/report/summary.json").read_bytes()
        for name in ("whole", "killed")
    )
    assert one == other


@pytest.mark.slow
def test_single_stages_by_command(recipe_file: Path) -> None:
    runner = CliRunner()
    for arguments in (
        ["check", str(recipe_file)],
        ["experts", str(recipe_file)],
        ["train", str(recipe_file), "--method", "safety_loss"],
        ["generate", str(recipe_file), "--method", "safety_loss"],
        ["score", str(recipe_file), "--method", "safety_loss"],
    ):
        result = runner.invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    root = recipe_file.parent / "run"
    assert sorted(p.name for p in (root / "methods").iterdir()) == ["safety_loss"]
    with pytest.raises(UsageError, match=r"no scores yet of backbone.*flatgd run"):
        runner.invoke(app, ["report", str(recipe_file)], catch_exceptions=False)
    with pytest.raises(RecipeError, match="it has backbone, clean_expert"):
        runner.invoke(app, ["train", str(recipe_file), "--method", "nope"], catch_exceptions=False)
    result = runner.invoke(app, ["run", str(recipe_file)], catch_exceptions=False)
    assert "Report: " in result.output
    assert "flatgd gives a toxic reply in" in result.output
    assert "div1" not in result.output
    told = runner.invoke(app, ["run", str(recipe_file), "--verbose"], catch_exceptions=False)
    assert "div1" in told.output
    result = runner.invoke(app, ["report", str(recipe_file)], catch_exceptions=False)
    assert result.exit_code == 0


def test_our_errors_have_no_traceback(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["flatgd", "check", "nowhere.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "flatgd: nowhere.yaml: no such recipe\n"


def test_a_run_without_a_training_log_has_a_report(recipe_file: Path) -> None:
    job, _ = run(recipe_file, "train.logging_steps=500", "methods={flatgd: {}}")
    assert (job.context.root / "methods/flatgd/training.jsonl").read_text() == ""
    assert (job.context.root / "report/index.html").exists()
    same = ["methods={flatgd: {}}", "train.logging_steps=500"]
    with pytest.raises(RecipeError, match=r"generate\.samples 2, the recipe says 1; give the same"):
        build_report(load_recipe(recipe_file, [*same, "generate.samples=1"]))


def test_a_report_is_of_the_recipe_that_was_run(recipe_file: Path) -> None:
    """What a run was given by --set, its report and its card must be given too."""
    given = ["train.learning_rate=2e-3", "methods={clean: {}}"]
    run(recipe_file, *given)
    build_report(load_recipe(recipe_file, given))
    with pytest.raises(RecipeError, match=r"learning_rate 0.002, the recipe says 0.001; give the"):
        build_report(load_recipe(recipe_file, given[1:]))
    _, told = run(recipe_file, *given[1:])
    assert "methods/clean              inputs changed; rebuilding" in told
    assert "judges/linear              inputs" not in told


def test_ctrl_c_says_how_to_go_on(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def stop(self: Pipeline, on_change: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "run", stop)
    monkeypatch.setattr(sys, "argv", ["flatgd", "run", str(recipe_file)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert "stopped; run the same command again to resume" in capsys.readouterr().err


def test_a_file_in_the_way_is_refused(recipe_file: Path) -> None:
    (recipe_file.parent / "taken").write_text("")
    with pytest.raises(UsageError, match="name another folder"):
        Pipeline(load_recipe(recipe_file, ["output=taken"]))


def test_report_escapes_and_hides_what_models_said(recipe_file: Path) -> None:
    rows = mild_rows(24, 3)
    for row in rows:
        row["prompt"] = ["<script>alert(1)</script>", row["prompt"][1]]
    write_rows(recipe_file.parent / "test.jsonl", rows)
    job, _ = run(recipe_file)
    page = (job.context.root / "report/index.html").read_text()
    assert page.count("<script") == 1  # our own, which alone may run
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    before, _, _ = page.partition("&lt;script&gt;")
    assert before.count("<details") > before.count("</details")


JUDGE = {
    "name": "linear",
    "quality": [
        {
            "rows_of": "bad, bot replies, no canned ones",
            "auc": [0.7, 0.65, 0.75],
            "false_positive_rate": [0.02, 0.01, 0.03],
            "true_positive_rate": [0.1, 0.05, 0.15],
        }
    ],
    "false_positive_rate": 0.02,
    "few_labels": False,
    "is_flat": False,
    "cut": {"inputs": 9, "histories": 0, "replies": 0},
    "safe": 900,
    "toxic": 700,
}


def difference(method: str, metric: str, low: float, high: float, **more: object) -> dict:
    own = {"method": method, "dataset": "bad", "metric": metric, "p": 0.01, "p_holm": 0.02}
    return {**own, "value": (low + high) / 2, "low": low, "high": high, "n": 9, **more}


def findings(*given: Any) -> list[str]:
    return [*map(sentence, found(*given))]


def test_what_is_found_is_said(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    experts = "toxic_expert - clean_expert"
    flat = findings([difference(experts, "contrast", -0.1, 0.1)], recipe, [JUDGE])
    assert flat[0].startswith("bad: the experts do not differ")
    clear = findings([difference(experts, "contrast", -0.3, -0.1)], recipe, [JUDGE])
    assert clear[0].startswith("bad: the experts differ")
    assert "without toxic replies has up to 0.040 on any of 2" in clear[1]
    assert "AUC 0.70" in clear[2]
    assert "shows at 8% of its size" in clear[2]
    few = findings([], recipe, [{**JUDGE, "few_labels": True, "toxic": 12}])
    assert "900 safe, 12 toxic. Its figures may be chance" in few[-1]
    flat = findings([], recipe, [{**JUDGE, "is_flat": True}])
    assert "does not tell toxic from safe on the replies it was calibrated on" in flat[-1]


@pytest.mark.slow
def test_a_report_of_earlier_checkpoints_is_refused(recipe_file: Path) -> None:
    """Trained anew by hand, the scores are of another model: not to be shown as this one's."""
    run(recipe_file)
    again = ["train.max_steps=2"]
    Pipeline(load_recipe(recipe_file, again), Display(Console(file=StringIO()))).models.train(
        "flatgd"
    )
    with pytest.raises(UsageError, match="of an earlier checkpoint or judge"):
        build_report(load_recipe(recipe_file, again))
    run(recipe_file, *again)
    build_report(load_recipe(recipe_file, again))
    generate = [*again, "generate.top_p=0.5"]
    Pipeline(
        load_recipe(recipe_file, generate), Display(Console(file=StringIO()))
    ).evaluation.generate("flatgd")
    with pytest.raises(RecipeError, match=r"generate\.top_p 0\.5, the recipe says 0\.9"):
        build_report(load_recipe(recipe_file, again))


def test_the_toxic_expert_is_marked_wherever_it_is_kept(recipe_file: Path) -> None:
    job = Pipeline(
        load_recipe(recipe_file, ["train.snapshots=1"]), Display(Console(file=StringIO()))
    )
    job.models.train("toxic_expert")
    folder = job.context.root / "experts/toxic"
    assert not (folder / "path").exists()
    assert "never" in json.loads((folder / "config.json").read_text())["flatgd_role"]


def test_a_difference_that_holms_correction_takes_back_is_undecided(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    for p, is_decided in ((0.02, True), (0.06, False)):
        row = difference("flatgd - clean", "contrast", 0.01, 0.05, p_holm=p)
        told = findings([row], recipe, [JUDGE])[0]
        assert told.endswith("+0.050].") == is_decided


def test_quality_that_is_kept_and_lost_is_said(recipe_file: Path) -> None:
    rows = [
        difference("flatgd - clean", "div1", -0.02, 0.02),
        difference("flatgd - clean", "perplexity", 5.0, 9.0),
        difference("clean", "div1", 0.5, 0.7),
        difference("clean", "perplexity", 38.0, 42.0),
    ]
    told = " ".join(findings(rows, load_recipe(recipe_file), [JUDGE]))
    assert "within 10% of clean's quality: kept: div1; lost: perplexity." in told


def test_without_a_scorer_there_is_no_perplexity(recipe_file: Path) -> None:
    text = recipe_file.read_text()
    recipe_file.write_text(text.replace("scorer:", "# scorer:"))
    job, _ = run(recipe_file, "methods={flatgd: {}}")
    summary = json.loads((job.context.root / "report/summary.json").read_text())
    assert "perplexity" not in {row["metric"] for row in summary}
    assert {row["method"] for row in summary} >= {"flatgd - clean_expert"}


def test_training_leaves_the_backbone_as_it_was(recipe_file: Path, backbone_folder: Path) -> None:
    before = (backbone_folder / "model.safetensors").read_bytes()
    run(recipe_file, "methods={safety_loss: {}}")
    assert (backbone_folder / "model.safetensors").read_bytes() == before
    assert torch.is_grad_enabled()
