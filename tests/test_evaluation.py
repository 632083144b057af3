"""Generation, likelihood, judge, diversity, intervals and summary against their twins."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from conftest import SAFE, TOXIC, byte_tokenizer, tiny_blenderbot, tiny_llama
from hypothesis import given
from hypothesis import strategies as st

from flatgd.errors import DataError, ModelError
from flatgd.evaluation.diversity import distinct, tokenize
from flatgd.evaluation.generate import generate_replies
from flatgd.evaluation.intervals import (
    UNDEFINED,
    bootstrap,
    difference_of_means,
    exp_ratio,
    paired,
    ratio,
    sum_by,
)
from flatgd.evaluation.judge import judge_report, quality
from flatgd.evaluation.likelihood import score_replies
from flatgd.evaluation.linear_judge import LinearJudge, train_judge
from flatgd.evaluation.summary import summarise
from flatgd.families import family_of
from flatgd.recipe import Generate
from flatgd.records import Dialogue

HISTORIES = [
    Dialogue(turns, "-", None, "t", "t")
    for turns in (("hello there",), ("do you like tea?", "yes"), ("what is up with the weather?",))
]


@pytest.mark.parametrize("model", [tiny_blenderbot(), tiny_llama()])
def test_replies_depend_on_the_seed_alone(model: torch.nn.Module) -> None:
    family = family_of(model.config, byte_tokenizer())
    settings = Generate(samples=3, max_new_tokens=8, batch_size=2)
    model.generation_config.num_beams = 4  # the checkpoint's own settings are set aside
    model.generation_config.max_length = 3
    first = generate_replies(model, family, HISTORIES, settings, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = generate_replies(model, family, HISTORIES, settings, seed=1)
    other = generate_replies(model, family, HISTORIES, settings, seed=2)
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())
    assert [len(replies) for replies in first] == [3, 3, 3]


def test_sampling_follows_the_model() -> None:
    """A model that must say one token says it; the length bounds hold."""
    model = tiny_blenderbot()
    family = family_of(model.config, byte_tokenizer())
    letter = family.tokenizer.convert_tokens_to_ids("x")
    with torch.no_grad():
        model.final_logits_bias[0, letter] = 1e4
    settings = Generate(samples=2, min_new_tokens=5, max_new_tokens=6)
    replies = generate_replies(model, family, HISTORIES, settings, seed=0)
    assert replies == [["xxxxxx", "xxxxxx"]] * 3


def test_likelihood_is_the_sum_over_the_reply() -> None:
    """Against the model's own loss, a mean over the same tokens, in float64."""
    model = tiny_blenderbot().double().eval()
    family = family_of(model.config, byte_tokenizer())
    row = Dialogue(("hello there",), "fine, thanks", True, "t", "c")
    (score,) = score_replies(model, family, [row])
    example = family.encode(row)
    labels = torch.tensor([example.reply_ids])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([example.history_ids]), labels=labels).loss
    assert score.tokens == labels.numel()
    assert score.nll == pytest.approx(float(loss) * score.tokens, rel=1e-10)


def judge_rows(count: int, offset: int = 0) -> list[Dialogue]:
    texts = [(t, True) for t in SAFE] + [(t, False) for t in TOXIC]
    return [
        Dialogue((f"line {n}",), f"{texts[n % 8][0]} {n}", texts[n % 8][1], "t", f"c{offset + n}")
        for n in range(count)
    ]


def test_judge_learns_saves_and_loads(tmp_path: Path) -> None:
    judge = train_judge(judge_rows(64), false_positive_rate=0.05)
    held_out = judge_rows(24, offset=1000)
    result = quality(judge, held_out)
    assert result.auc == 1.0
    assert result.f1 == 1.0
    judge.save(tmp_path / "judge")
    loaded = LinearJudge.load(tmp_path / "judge")
    pairs = [(row.history, row.reply) for row in held_out]
    assert np.allclose(judge.score(pairs), loaded.score(pairs))
    assert loaded.threshold == judge.threshold
    assert sorted(p.name for p in (tmp_path / "judge").iterdir()) == [
        "judge.json",
        "judge.safetensors",
    ]


def test_judge_threshold_lets_the_stated_share_through() -> None:
    """On labels that are pure noise the threshold still marks its share of unseen safe replies."""
    rng = np.random.default_rng(0)
    words = [f"w{n}" for n in range(50)]
    rows = [
        Dialogue((), " ".join(rng.choice(words, 8)), bool(rng.random() < 0.7), "t", f"c{n}")
        for n in range(1200)
    ]
    judge = train_judge(rows[:600], false_positive_rate=0.1)
    fresh = judge.score([(row.history, row.reply) for row in rows[600:]])
    assert 0.04 <= float((fresh > judge.threshold).mean()) <= 0.2


def test_judge_of_too_few_conversations_is_told() -> None:
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
    assert train_judge(mixed, 0.1).threshold > 0
    with pytest.raises(DataError, match="at least two conversations each"):
        train_judge([r for r in two if r.is_safe or r.conversation == "c1"], 0.1)


def test_judge_of_one_label_is_undefined_and_missing_judge_is_told(tmp_path: Path) -> None:
    judge = train_judge(judge_rows(32), 0.1)
    safe = [row for row in judge_rows(16) if row.is_safe]
    assert quality(judge, safe).auc is None
    assert quality(judge, []).rows == 0
    assert judge.score([]).shape == (0,)
    report = judge_report(judge, "linear", judge_rows(16))
    assert [part["rows"] for part in report["quality"]] == [16]
    human = [dataclasses.replace(row, speaker="human") for row in judge_rows(8)]
    report = judge_report(judge, "linear", judge_rows(16) + human)
    assert [part["rows"] for part in report["quality"]] == [24, 16]
    with pytest.raises(ModelError, match="run the judge stage first"):
        LinearJudge.load(tmp_path)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=5))
def test_distinct_equals_its_twin(replies: list[list[str]]) -> None:
    texts = [" ".join(reply) for reply in replies]
    for n in (1, 2):
        assert distinct(texts, n) == pytest.approx(reference.distinct(replies, n))


def test_distinct_without_tokens_is_undefined() -> None:
    assert distinct(["", " "], 1) is None
    assert tokenize("") == []


def test_bootstrap_value_is_the_statistic_of_all() -> None:
    totals = sum_by(["a", "b", "a"], [(1.0, 1.0), (0.0, 1.0), (1.0, 1.0)])
    estimate = bootstrap(totals, ratio, 500, seed=0)
    assert estimate.value == pytest.approx(2 / 3)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate == bootstrap(totals, ratio, 500, seed=0)


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], UNDEFINED),
        ([(0.0, 0.0)], UNDEFINED),
        ([(0.0, 0.0), (0.0, 0.0)], UNDEFINED),
    ],
)
def test_degenerate_data_is_undefined(rows: list, wanted: object) -> None:
    assert bootstrap(sum_by(range(len(rows)), rows), ratio, 100, seed=0) == wanted


def test_one_conversation_has_a_value_but_no_interval() -> None:
    estimate = bootstrap(sum_by(["a"], [(3.0, 4.0)]), ratio, 100, seed=0)
    assert estimate == (0.75, None, None)


def test_all_alike_has_an_interval_of_no_width() -> None:
    estimate = bootstrap(sum_by(range(5), [(1.0, 1.0)] * 5), ratio, 100, seed=0)
    assert estimate == (1.0, 1.0, 1.0)


def test_coverage_of_the_interval() -> None:
    """95 % intervals of a mean over 60 conversations of 4 correlated rows hold the truth in 95 %
    of 400 data sets, within what 400 trials can tell: 2.6 * sqrt(.95 * .05 / 400) = .03 about it.
    """
    rng = np.random.default_rng(11)
    held = 0
    for trial in range(400):
        shared = rng.normal(size=60)
        rows = [(shared[c] + rng.normal(), 1.0) for c in range(60) for _ in range(4)]
        keys = [c for c in range(60) for _ in range(4)]
        estimate = bootstrap(sum_by(keys, rows), ratio, 400, seed=trial)
        held += estimate.low <= 0.0 <= estimate.high
    assert 0.92 <= held / 400 <= 0.98


def test_paired_difference_is_tighter_than_its_parts() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(size=80)
    ours = sum_by(range(80), [(b + 0.1 + 0.01 * rng.normal(), 1.0) for b in base])
    theirs = sum_by(range(80), [(b, 1.0) for b in base])
    difference = paired(ours, theirs, ratio, 500, seed=0)
    alone = bootstrap(ours, ratio, 500, seed=0)
    assert difference.value == pytest.approx(0.1, abs=0.01)
    assert (difference.high - difference.low) < (alone.high - alone.low) / 10
    assert paired(ours, {}, ratio, 100, seed=0) == UNDEFINED


def test_statistics_by_hand() -> None:
    assert difference_of_means(np.array([6.0, 2.0, 1.0, 1.0])) == 2.0
    assert exp_ratio(np.array([math.log(4) * 3, 3.0])) == pytest.approx(4.0)


def generated(talk: str, toxic: list[float], nll: list[float], dataset: str = "d") -> dict:
    return {
        "kind": "generated",
        "dataset": dataset,
        "conversation": talk,
        "toxic": {"one": toxic, "other": [1 - chance for chance in toxic]},
        "words": [2] * len(toxic),
        "div1": 0.5,
        "div2": None,
        "nll": nll,
        "tokens": [2] * len(nll),
    }


def labelled(talk: str, context: str, is_safe: bool, nll: float, tokens: int = 2) -> dict:
    return {
        "kind": "labelled",
        "dataset": "d",
        "conversation": talk,
        "context": context,
        "is_safe": is_safe,
        "nll": nll,
        "tokens": tokens,
    }


def test_summary_by_hand() -> None:
    """Two histories of two replies. With the mark at .6 one of two histories has a toxic reply; at
    .5 both. Mean P: (.1 + .7 + .2 + .55) / 4. Perplexities: e^(2/2), e^(4/2), e^1, e^1 and the
    corpus exp(10 / 8). Contrast: toxic (3 + 1) / 2 = 2 less safe (1 + 0) / 2 = .5; paired, in the
    one context with both, 3 - 1 = 2. div2 is undefined for both, so it has no row.
    """
    ours = [
        generated("a", [0.1, 0.7], [2.0, 4.0]),
        generated("b", [0.2, 0.55], [2.0, 2.0]),
        labelled("a", "x", False, 6.0),
        labelled("a", "x", True, 2.0),
        labelled("b", "y", False, 2.0),
        labelled("c", "z", True, 0.0),
        labelled("c", "w", True, 5.0, tokens=0),
    ]
    base = [
        generated("a", [0.1, 0.1], [2.0, 2.0]),
        generated("b", [0.2, 0.1], [2.0, 2.0]),
    ]
    rows = summarise({"m": ours, "clean": base}, 2, {"one": 0.6, "other": 0.85}, 100, 0, "clean")
    cells = {(r["method"], r["metric"]): r for r in rows}
    assert cells["m", "toxicity_any2"]["value"] == 0.5
    assert cells["m", "toxicity_any2_p50"]["value"] == 1.0
    assert cells["m", "toxicity_mean"]["value"] == pytest.approx(1.55 / 4)
    assert cells["m", "toxicity_mean@other"]["value"] == pytest.approx(1 - 1.55 / 4)
    assert cells["m", "toxicity_any2@other"]["value"] == 0.5  # .9 and .3, .8 and .45
    assert cells["m", "toxicity_max"]["value"] == pytest.approx(1.25 / 2)
    wanted = (math.exp(1) * 3 + math.exp(2)) / 4
    assert cells["m", "perplexity"]["value"] == pytest.approx(wanted)
    assert cells["m", "perplexity_corpus"]["value"] == pytest.approx(math.exp(10 / 8))
    assert cells["m", "div1"]["value"] == 0.5
    assert ("m", "div2") not in cells
    assert cells["m", "contrast"]["value"] == pytest.approx(1.5)
    assert cells["m", "contrast"]["excluded"] == 1
    assert cells["m", "contrast_paired"]["value"] == pytest.approx(2.0)
    assert cells["m", "contrast_paired"]["n"] == 1
    assert cells["m - clean", "toxicity_any2"]["value"] == 0.5
    assert ("clean - clean", "toxicity_any2") not in cells
    assert ("m - clean", "contrast") not in cells
    assert all(v is None or math.isfinite(v) for r in rows for v in (r["value"], r["low"]))
