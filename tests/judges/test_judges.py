"""Judges: what they learn, how they are calibrated and measured, how they agree."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOXIC, byte_tokenizer, tiny_blenderbot
from judged import judge_rows
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
from transformers import BertConfig, BertForSequenceClassification

from flatgd.config.judge import JudgeSettings
from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, ModelError
from flatgd.evaluation.agreement import agreement, kappa
from flatgd.judges.base import Judge, pairs_of
from flatgd.judges.calibration import Calibration, calibrate, toxic_labels
from flatgd.judges.classifier import HFJudge
from flatgd.judges.linear import _Fitted, train_judge
from flatgd.judges.quality import judge_report, quality
from flatgd.judges.registry import load_judge, make_judge
from flatgd.judges.trained import TrainedJudge

PLAIN = Calibration(1.0, 0.0, 0.5, 0.5, 9, 9)


class Fixed:
    """A scorer that says what is written in the reply."""

    def score(self, pairs: list, advance: object) -> np.ndarray:
        return np.array([float(reply) for _, reply in pairs])


def scored(
    values: list[float], labels: list[bool], talks: list[str] | None = None
) -> list[Dialogue]:
    names = talks or [f"c{n}" for n in range(len(values))]
    return [
        Dialogue(("hi",), str(v), not toxic, "t", name)
        for v, toxic, name in zip(values, labels, names, strict=True)
    ]


def test_linear_judge_learns_saves_and_loads(tmp_path: Path) -> None:
    settings = JudgeSettings(false_positive_rate=0.05)
    judge, about = make_judge(settings, judge_rows(64), tmp_path / "judge")
    held_out = judge_rows(24, offset=1000)
    result = quality(judge, held_out, 0.05)
    assert result.auc[0] == result.f1[0] == result.found[0] == 1.0
    assert "64 labelled" in about
    loaded = load_judge(settings, tmp_path / "judge")
    assert np.allclose(judge.score(pairs_of(held_out)), loaded.score(pairs_of(held_out)))
    assert loaded.calibration == judge.calibration
    names = sorted(p.name for p in (tmp_path / "judge").iterdir())
    assert names == ["calibration.json", "judge.json", "judge.safetensors"]


def test_threshold_lets_the_stated_share_through() -> None:
    """On labels that are pure noise the threshold still marks its share of unseen safe replies."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(50)]
    rows = [
        Dialogue((), " ".join(rng.choice(words, 8)), bool(rng.random() < 0.7), "t", f"c{n}")
        for n in range(1200)
    ]
    judge = train_judge(rows[:600], false_positive_rate=0.1)
    fresh = judge.score(pairs_of(rows[600:]))
    assert 0.04 <= float((fresh > judge.calibration.threshold).mean()) <= 0.2


def test_calibration_undoes_a_distorted_probability() -> None:
    """Scores whose logit is (logit P - 1) / 2: slope 2 and intercept 1 bring P back."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20000)
    labels = rng.random(20000) < 1 / (1 + np.exp(-logits))
    scores = 1 / (1 + np.exp(-(logits - 1) / 2))
    found = calibrate(scores, scored([0.0] * 20000, labels.tolist()), 0.02)
    assert found.slope == pytest.approx(2.0, abs=0.1)
    assert found.intercept == pytest.approx(1.0, abs=0.1)
    probabilities = found.apply(scores)
    assert (probabilities[~labels] > found.threshold).mean() == pytest.approx(0.02, abs=1e-3)
    f1 = [f1_score(labels, probabilities > mark) for mark in np.linspace(0.05, 0.95, 91)]
    assert f1_score(labels, probabilities > found.f1_threshold) == pytest.approx(max(f1), abs=2e-3)


def test_f1s_mark_does_not_part_rows_of_one_score() -> None:
    """Of 50 rows at .9 (30 toxic) and 50 at .1 (5 toxic) the best mark lies between the two."""
    scores = np.array([0.9] * 50 + [0.1] * 50)
    labels = [True] * 30 + [False] * 20 + [True] * 5 + [False] * 45
    found = calibrate(scores, scored(scores.tolist(), labels), 0.02)
    assert found.apply(np.array([0.1]))[0] < found.f1_threshold < found.apply(np.array([0.9]))[0]


def test_one_conversation_has_no_interval() -> None:
    rows = scored([0.1, 0.9], [False, True], ["c", "c"])
    assert quality(Judge(Fixed(), PLAIN), rows, 0.1).auc == (1.0, None, None)


def test_long_replies_fit_the_model(tmp_path: Path) -> None:
    """The default of 512 tokens is more than the 128 positions of this model."""
    tiny_blenderbot().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    settings = JudgeSettings(kind="trained", model=str(tmp_path / "model"), epochs=1)
    judge, _ = make_judge(settings, judge_rows(32), tmp_path / "judge")
    assert np.isfinite(judge.score([(("word " * 200,), "word " * 200)])).all()


def test_quality_is_that_of_the_textbook() -> None:
    rng = np.random.default_rng(1)
    labels = rng.random(300) < 0.4
    values = np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0.01, 0.99), 2)  # with ties
    talks = [f"c{n // 3}" for n in range(300)]
    rows = scored(values.tolist(), labels.tolist(), talks)
    found = quality(Judge(Fixed(), PLAIN), rows, 0.1)
    assert found.auc[0] == pytest.approx(roc_auc_score(labels, values))
    assert found.f1[0] == pytest.approx(f1_score(labels, values > 0.5))
    assert found.false_positive_rate[0] == pytest.approx((values[~labels] > 0.5).mean())
    assert found.true_positive_rate[0] == pytest.approx((values[labels] > 0.5).mean())
    assert found.brier == pytest.approx(brier_score_loss(labels, values))
    for value, low, high in found[:5]:
        assert low <= value <= high
    marks = [m for m in np.unique(values) if (values[~labels] > m).mean() <= 0.1]
    assert found.found[0] >= (values[labels] > min(marks)).mean()


def test_calibration_error_by_hand() -> None:
    """Twenty rows in ten bins of two: P is .25 everywhere, half of every bin is toxic: .25 off."""
    rows = scored([0.25] * 20, [True, False] * 10)
    assert quality(Judge(Fixed(), PLAIN), rows, 0.1).calibration_error == pytest.approx(0.25)


def test_too_few_conversations_are_refused() -> None:
    one = [dataclasses.replace(row, conversation="c") for row in judge_rows(16)]
    toxic_in_one = [row for row in judge_rows(32) if row.is_safe or row.conversation == "c4"]
    for rows in (one, toxic_in_one):
        with pytest.raises(DataError, match="at least two conversations each"):
            train_judge(rows, 0.1)
    two = [
        dataclasses.replace(row, conversation=f"c{n % 2}") for n, row in enumerate(judge_rows(16))
    ]
    mixed = [
        dataclasses.replace(r, conversation=f"c{n // 8}") for n, r in enumerate(judge_rows(16))
    ]
    assert train_judge(mixed, 0.1).calibration.threshold > 0
    with pytest.raises(DataError, match="at least two conversations each"):
        train_judge([r for r in two if r.is_safe or r.conversation == "c1"], 0.1)


def test_one_label_is_undefined_and_a_missing_judge_is_an_error(tmp_path: Path) -> None:
    judge = train_judge(judge_rows(32), 0.1)
    safe = [row for row in judge_rows(16) if row.is_safe]
    assert quality(judge, safe, 0.1).auc is None
    assert quality(judge, [], 0.1).rows == 0
    assert judge.score([]).shape == (0,)
    for kind in ("linear", "trained"):
        model = {"model": str(tmp_path)} if kind == "trained" else {}
        with pytest.raises(ModelError, match="`flatgd run` builds it"):
            load_judge(JudgeSettings(kind=kind, **model), tmp_path)


def test_report_has_a_part_for_every_speaker_and_warns_of_few_labels() -> None:
    judge = train_judge(judge_rows(32), 0.1)
    report = judge_report(judge, "linear", judge_rows(16), 0.1)
    assert [part["rows"] for part in report["quality"]] == [16]
    human = [dataclasses.replace(row, speaker="human") for row in judge_rows(8)]
    report = judge_report(judge, "linear", judge_rows(16) + human, 0.1)
    names = ["t, all rows", "t, human replies", "t, bot replies", "t, bot replies, no canned ones"]
    assert [part["rows_of"] for part in report["quality"]] == names
    assert [part["rows"] for part in report["quality"]] == [24, 8, 16, 16]
    assert report["few_labels"]
    assert len(json.dumps(report, allow_nan=False)) > 100
    unlabelled = [dataclasses.replace(row, is_safe=None, source="u") for row in judge_rows(4)]
    report = judge_report(judge, "linear", judge_rows(16) + unlabelled, 0.1)
    assert [part["rows_of"] for part in report["quality"]] == ["t, all rows"]


def test_agreement_by_hand() -> None:
    """Marks at .5: one 1100, other 1010. They agree on half, as chance would have it: kappa 0."""
    rows = [
        {"kind": "generated", "toxic": {"one": [0.9, 0.8], "other": [0.9, 0.2]}},
        {"kind": "generated", "toxic": {"one": [0.1, 0.2], "other": [0.6, 0.1]}},
        {"kind": "reference", "toxic": {"one": [1.0], "other": [0.0]}},
    ]
    (found,) = agreement(rows, {"one": 0.5, "other": 0.5})
    assert found.kappa == pytest.approx(0.0)
    assert found.both == 0.25
    assert found.replies == 4
    assert found.spearman == pytest.approx(np.corrcoef([4, 3, 1, 2], [4, 2, 3, 1])[0, 1])
    same = np.zeros(4, dtype=bool)
    assert kappa(same, same) is None
    assert agreement([], {"one": 0.5, "other": 0.5})[0].kappa is None


def test_labels_of_rows() -> None:
    assert toxic_labels(judge_rows(8)).tolist() == [False] * 4 + [True] * 4


# Which way the score points


def spread(toxic: float, safe: float, each: int, seed: int, noise: float = 0.05) -> tuple:
    """Scores around two means, one row a conversation, and their labelled rows."""
    rng = np.random.default_rng(seed)
    labels = np.arange(2 * each) % 2 == 0
    scores = np.clip(np.where(labels, toxic, safe) + rng.normal(0, noise, 2 * each), 0.01, 0.99)
    return scores, scored(scores.tolist(), labels.tolist())


def is_refused(scores: np.ndarray, rows: list[Dialogue]) -> bool:
    try:
        calibrate(scores, rows, 0.02)
    except ModelError:
        return True
    return False


@pytest.mark.parametrize(
    ("toxic", "safe", "each", "noise", "refused"),
    [
        (0.1, 0.9, 200, 0.02, True),
        (0.1, 0.9, 10, 0.02, True),
        (0.45, 0.5, 200, 0.1, True),  # AUC about .36
        (0.1, 0.9, 3, 0.02, False),  # 1 in 20 by chance
        (0.45, 0.5, 10, 0.1, False),
        (0.9, 0.1, 200, 0.02, False),
        (0.51, 0.5, 200, 0.1, False),
    ],
)
def test_a_score_that_falls_with_toxicity_is_refused(
    toxic: float, safe: float, each: int, noise: float, refused: bool
) -> None:
    assert is_refused(*spread(toxic, safe, each, 0, noise)) is refused


@pytest.mark.parametrize("each", [4, 20, 200])
def test_a_score_that_knows_nothing_is_not_refused(each: int) -> None:
    """At most 1 in 1,000 times; of 60 draws none is seen here."""
    assert not any(is_refused(*spread(0.5, 0.5, each, seed, 0.1)) for seed in range(60))


def test_rows_of_a_conversation_are_no_evidence_of_their_own() -> None:
    """Eight conversations of 50 rows, one label each, whose scores differ by conversation alone:
    what looks like 400 rows is eight."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        talk = np.repeat(np.arange(8), 50)
        scores = np.clip(0.5 + rng.normal(0, 0.1, 8)[talk] + rng.normal(0, 0.01, 400), 0.01, 0.99)
        rows = scored(scores.tolist(), (talk % 2 == 0).tolist(), [f"c{n}" for n in talk])
        assert not is_refused(scores, rows)


def test_the_direction_is_that_of_bots_rows_and_where_they_say_nothing_of_all() -> None:
    scores, rows = spread(0.1, 0.9, 50, 0)
    human = [dataclasses.replace(row, speaker="human", conversation="h" + row.conversation)
             for row in rows]  # fmt: skip
    good, bots = spread(0.9, 0.1, 50, 1)
    assert not is_refused(np.concatenate([good, scores]), [*bots, *human])
    few, silent = spread(0.5, 0.5, 4, 3, 1e-3)
    assert is_refused(np.concatenate([few, scores]), [*silent, *human])


def test_a_reward_far_from_zero_is_not_taken_for_noise() -> None:
    """Sigmoids of rewards above 14 are all above the last score that a logit is taken of."""
    rng = np.random.default_rng(0)
    labels = np.arange(100) % 2 == 0
    rewards = np.where(labels, 16.0, 20.0) + rng.normal(0, 0.5, 100)
    scores = 1 / (1 + np.exp(-rewards))
    assert is_refused(scores, scored([0.0] * 100, labels.tolist()))


def test_a_score_of_nan_is_refused() -> None:
    scores, rows = spread(0.9, 0.1, 10, 0)
    scores[3] = np.nan
    with pytest.raises(ModelError, match="NaN for 1 of 20 replies"):
        calibrate(scores, rows, 0.02)


HF_MODEL = {"kind": "hf", "model": "m"}


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (JudgeSettings(), "check that the labels of data.judge are not swapped"),
        (JudgeSettings(kind="trained", model="m"), "or tune with a lower learning_rate"),
        (
            JudgeSettings(**HF_MODEL),
            r"'toxic' of .* is taken for the toxic label; .* another one \(ok, spam\), or",
        ),
        (JudgeSettings(**HF_MODEL, negate=True), "or remove negate"),
        (JudgeSettings(**HF_MODEL, toxic_label="ok"), r"another one \(toxic, spam\), or set"),
    ],
)
def test_every_kind_of_judge_is_refused_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: JudgeSettings, remedy: str
) -> None:
    folder = tmp_path / "model"
    config = BertConfig(vocab_size=260, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.id2label = {0: "ok", 1: "toxic", 2: "spam"}
    BertForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    if settings.model:
        settings = settings.model_copy(update={"model": str(folder), "epochs": 0.1})

    def upside_down(_: object, pairs: list, advance: object = None) -> np.ndarray:
        toxic = [any(reply.startswith(text) for text in TOXIC) for _, reply in pairs]
        return np.where(toxic, 0.2, 0.8) + np.linspace(0, 0.01, len(pairs))

    for kind in (HFJudge, TrainedJudge):
        monkeypatch.setattr(kind, "score", upside_down)
    whole = _Fitted.predict
    monkeypatch.setattr(_Fitted, "predict", lambda self, counts: 1 - whole(self, counts))
    with pytest.raises(ModelError, match=f"must rise with toxicity.*AUC 0.000.*{remedy}"):
        make_judge(settings, judge_rows(160), tmp_path / "judge")


def test_a_reward_model_is_read_with_negate(tmp_path: Path) -> None:
    """One output, which falls with toxicity: refused with the way out, which works."""
    folder = tmp_path / "model"
    torch.manual_seed(0)
    config = BertConfig(vocab_size=260, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.num_labels = 1
    BertForSequenceClassification(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    plain = JudgeSettings(kind="hf", model=str(folder))
    rows = judge_rows(160)
    scores = HFJudge.load(plain).score(pairs_of(rows))
    best = [dataclasses.replace(r, is_safe=bool(s > np.median(scores)))
            for r, s in zip(rows, scores, strict=True)]  # fmt: skip
    with pytest.raises(ModelError, match=r"that of a reward model does; if so, set negate: true"):
        make_judge(plain, best, tmp_path / "judge")
    turned = plain.model_copy(update={"negate": True})
    judge, _ = make_judge(turned, best, tmp_path / "judge")
    assert quality(judge, best, 0.02).auc[0] == 1.0


def test_a_flat_judge_is_reported() -> None:
    up, rows = spread(0.9, 0.1, 10, 0)
    assert calibrate(np.full(20, 0.7), rows, 0.02).is_flat
    assert not calibrate(up, rows, 0.02).is_flat
