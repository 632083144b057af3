"""The hf judge: heads, labels, templates, batches, and a run with two judges."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import byte_tokenizer, mild_rows, roberta
from pydantic import ValidationError
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.judge import JudgeSettings
from flatgd.config.loading import load_recipe
from flatgd.data.jsonl import dialogues_from_row
from flatgd.errors import ModelError, RecipeError
from flatgd.io.records import read_jsonl
from flatgd.judges.base import pairs_of
from flatgd.judges.classifier import HFJudge, check_judge, render, toxic_column
from flatgd.judges.registry import load_judge, make_judge

ROWS = [row for raw in mild_rows(16, 5) for row in dialogues_from_row(raw)]


def settings(folder: Path, **fields) -> JudgeSettings:
    return JudgeSettings(kind="hf", model=str(folder), **fields)


def logits(folder: Path, text: str) -> torch.Tensor:
    """The slow way: one text, no padding, float64."""
    model = RobertaForSequenceClassification.from_pretrained(folder).double().eval()
    tokens = byte_tokenizer()(text, return_tensors="pt")
    kept = {key: value[:, -64:] for key, value in tokens.items() if key != "token_type_ids"}
    with torch.no_grad():
        return model(**kept).logits[0]


def test_softmax_head_against_one_by_one(tmp_path: Path) -> None:
    folder = roberta(tmp_path, ["neutral", "toxic"])
    judge = HFJudge.load(settings(folder, batch_size=3))
    pairs = [*pairs_of(ROWS[:6]), (("hi",), "x" * 200)]
    slow = [float(logits(folder, reply).softmax(-1)[1]) for _, reply in pairs]
    assert np.allclose(judge.score(pairs), slow, atol=1e-5)
    assert judge.score([]).shape == (0,)
    assert np.ptp(slow) > 0.01


def test_sigmoid_heads(tmp_path: Path) -> None:
    """By the config's problem type, by a single output, or as the recipe says."""
    many = roberta(
        tmp_path / "many", ["insult", "toxicity", "threat"], "multi_label_classification"
    )
    single = roberta(tmp_path / "single", ["LABEL_0"])
    pair = pairs_of(ROWS[:1])
    chance = HFJudge.load(settings(many)).score(pair)[0]
    assert chance == pytest.approx(float(logits(many, ROWS[0].reply).sigmoid()[1]), abs=1e-5)
    chance = HFJudge.load(settings(single)).score(pair)[0]
    assert chance == pytest.approx(float(logits(single, ROWS[0].reply).sigmoid()[0]), abs=1e-5)
    chance = HFJudge.load(settings(many, activation="softmax")).score(pair)[0]
    assert chance == pytest.approx(float(logits(many, ROWS[0].reply).softmax(-1)[1]), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "named", "column"),
    [
        (["neutral", "toxic"], None, 1),
        (["__notok__", "__ok__"], None, 0),
        (["Not-Hate", "HATE"], None, 1),
        (["toxic", "severe_toxic", "insult"], None, 0),
        (["LABEL_0", "LABEL_1"], "LABEL_1", 1),
        (["LABEL_0", "LABEL_1"], 1, 1),
        (["a", "b", "toxic"], "a", 0),
        (["nothing"], None, 0),
    ],
)
def test_which_label_means_toxic(labels: list[str], named: str | int | None, column: int) -> None:
    config = RobertaConfig(num_labels=len(labels), id2label=dict(enumerate(labels)))
    asked = JudgeSettings(kind="hf", model="a/b", toxic_label=named)
    assert toxic_column(asked, config) == column


@pytest.mark.parametrize(
    ("labels", "named", "reason"),
    [
        (["LABEL_0", "LABEL_1"], None, "set toxic_label to one of: LABEL_0, LABEL_1"),
        (["non-toxic", "not hate"], None, "set toxic_label"),
        (["toxic", "hate"], None, "set toxic_label"),
        (["neutral", "toxic"], "rude", "no label 'rude' .* its labels are neutral, toxic"),
    ],
)
def test_labels_that_leave_it_open(labels: list[str], named: str | None, reason: str) -> None:
    config = RobertaConfig(num_labels=len(labels), id2label=dict(enumerate(labels)))
    with pytest.raises(ModelError, match=reason):
        toxic_column(JudgeSettings(kind="hf", model="a/b", toxic_label=named), config)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "no"),
        ({"template": "{history}\n{reply}"}, "b\nc\nd\nno"),
        ({"template": "{history}\n{reply}", "history_lines": 0}, "no"),
        (
            {"template": "[HST]{history}[ANS]{reply}", "separator": "[END]"},
            "[HST]b[END]c[END]d[ANS]no",
        ),
        (
            {
                "template": "{history}\n{reply}",
                "human": "Human: ",
                "bot": "Bot: ",
                "history_lines": 2,
            },
            "Bot: c\nHuman: d\nBot: no",
        ),
        (
            {"template": "Is {reply} toxic after {history}?", "history_lines": 1},
            "Is no toxic after d?",
        ),
    ],
)
def test_templates(fields: dict, text: str) -> None:
    asked = JudgeSettings(kind="hf", model="a/b", **fields)
    assert render(asked, ["a", "b", "c", "d"], "no") == text


def test_text_of_the_data_is_never_a_template() -> None:
    asked = JudgeSettings(kind="hf", model="a/b", template="{history}|{reply}")
    assert render(asked, ["{reply}"], "{history}") == "{reply}|{history}"


def test_a_long_input_loses_its_beginning(tmp_path: Path) -> None:
    folder = roberta(tmp_path, ["neutral", "toxic"])
    judge = HFJudge.load(settings(folder, template="{history}\n{reply}"))
    one, other = (((f"{letter}" * 300,), "a reply at the end") for letter in "ab")
    near = judge.score([one, (("b" * 300,), "another reply at the end")])
    far = judge.score([(("c" * 300 + one[0][0][-60:],), one[1])])
    assert far[0] == pytest.approx(near[0], abs=1e-6)
    assert judge.score([other])[0] != pytest.approx(near[0], abs=1e-9)


def test_the_threshold_is_set_on_labelled_rows_and_kept(tmp_path: Path) -> None:
    folder = roberta(tmp_path / "model", ["neutral", "toxic"])
    asked = settings(folder, false_positive_rate=0.25)
    judge, _ = make_judge(asked, ROWS, tmp_path / "judge")
    safe = [row for row in ROWS if row.is_safe]
    marked = judge.score(pairs_of(safe)) > judge.calibration.threshold
    assert marked.mean() == pytest.approx(0.25, abs=0.13)
    again = load_judge(asked, tmp_path / "judge")
    assert again.calibration == judge.calibration
    assert [p.name for p in (tmp_path / "judge").iterdir()] == ["calibration.json"]


def test_other_architectures_work_too(tmp_path: Path) -> None:
    config = DistilBertConfig(
        vocab_size=260, dim=16, n_layers=1, n_heads=2, hidden_dim=32, id2label={0: "OK", 1: "NOTOK"}
    )
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    scores = HFJudge.load(settings(tmp_path)).score(pairs_of(ROWS))
    assert ((scores > 0) & (scores < 1)).all()


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = roberta(tmp_path, ["neutral", "toxic"])
    model = RobertaForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load"):
        HFJudge.load(settings(folder))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": "hf"}, "kind: hf needs a model"),
        ({"model": "a/b"}, "model is for kind: embedding, trained, hf or guard"),
        ({"kind": "hf", "model": "a/b", "template": "{answer}"}, "must hold {reply}"),
        ({"kind": "hf", "model": "a/b", "name": "a/b"}, "pattern"),
    ],
)
def test_settings_that_are_refused(fields: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        JudgeSettings(**fields)


@pytest.mark.slow
def test_two_judges_in_one_recipe(recipe_file: Path, tmp_path: Path) -> None:
    folder = roberta(tmp_path / "judge_model", ["neutral", "toxic"])
    judges = f"[{{kind: linear}}, {{kind: hf, name: tiny, model: {folder}}}]"
    words = [str(recipe_file), "--set", f"judges={judges}", "--set", "methods={clean: {}}"]
    told = CliRunner().invoke(app, ["run", *words], catch_exceptions=False)
    assert told.exit_code == 0
    root = tmp_path / "run"
    rows = [row for row in read_jsonl(root / "scores/clean.jsonl") if row["kind"] == "generated"]
    assert all(list(row["toxic"]) == ["linear", "tiny"] for row in rows)
    summary = json.loads((root / "report/summary.json").read_text())
    metrics = {row["metric"] for row in summary if row["method"] == "clean"}
    assert {"toxicity_mean", "toxicity_mean@tiny", "toxicity_any2@tiny"} <= metrics
    tables = (root / "report/tables.md").read_text()
    assert "mean P(toxic) by tiny ↓" in tables
    assert "The judge tiny" in tables
    assert "The judge linear is set to flag 2.0%" in tables
    with pytest.raises(RecipeError, match="not by linear; `flatgd run"):
        CliRunner().invoke(
            app,
            ["report", str(recipe_file), "--set", "methods={clean: {}}"],
            catch_exceptions=False,
        )


def test_check_reports_faults_of_judges(recipe_file: Path, tmp_path: Path) -> None:
    folder = roberta(tmp_path / "judge_model", ["LABEL_0", "LABEL_1"])
    with pytest.raises(ModelError, match="set toxic_label"):
        check_judge(settings(folder))
    judges = f"[{{kind: hf, model: {folder}}}]"
    with pytest.raises(
        RecipeError, match=r"judges.hf: it is not clear which label of .* means toxic"
    ):
        CliRunner().invoke(
            app, ["check", str(recipe_file), "--set", f"judges={judges}"], catch_exceptions=False
        )
    with pytest.raises(RecipeError, match="two are called 'linear'"):
        load_recipe(recipe_file, ["judges=[{kind: linear}, {kind: linear}]"])
