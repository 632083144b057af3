"""Generation, likelihood and diversity against their twins; what replies do."""

from io import StringIO
from pathlib import Path

import pytest
import reference
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from hypothesis import given
from hypothesis import strategies as st
from refusals import HELD_OUT, TUNED_ON
from rich.console import Console

from flatgd.config.loading import load_recipe
from flatgd.config.recipe import Generate
from flatgd.data.behaviour import behaviour
from flatgd.dialogue import Dialogue
from flatgd.evaluation.diversity import Corpus, distinct, expectation_adjusted, tokenize
from flatgd.models.dialogue_format import format_for
from flatgd.models.generate import generate_replies
from flatgd.models.likelihood import score_replies
from flatgd.pipeline.pipeline import Pipeline
from flatgd.runtime.display import Display

HISTORIES = [
    Dialogue(turns, "-", None, "t", "t")
    for turns in (("hello there",), ("do you like tea?", "yes"), ("what is up with the weather?",))
]


@pytest.mark.parametrize("model", [tiny_blenderbot(), tiny_llama()])
def test_replies_depend_on_the_seed_alone(model: torch.nn.Module) -> None:
    family = format_for(model.config, byte_tokenizer())
    settings = Generate(samples=3, max_new_tokens=8, batch_size=2)
    model.generation_config.num_beams = 4  # the checkpoint's own settings are set aside
    model.generation_config.max_length = 3
    first = generate_replies(model, family, HISTORIES, settings, seed=1).texts
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = generate_replies(model, family, HISTORIES, settings, seed=1).texts
    other = generate_replies(model, family, HISTORIES, settings, seed=2).texts
    assert first == again != other
    assert torch.equal(state, torch.get_rng_state())
    assert [len(replies) for replies in first] == [3, 3, 3]


def test_sampling_follows_the_model() -> None:
    """A model that must say one token says it; the length bounds hold."""
    model = tiny_blenderbot()
    family = format_for(model.config, byte_tokenizer())
    letter = family.tokenizer.convert_tokens_to_ids("x")
    with torch.no_grad():
        model.final_logits_bias[0, letter] = 1e4
    settings = Generate(samples=2, min_new_tokens=5, max_new_tokens=6)
    replies = generate_replies(model, family, HISTORIES, settings, seed=0).texts
    assert replies == [["xxxxxx", "xxxxxx"]] * 3


def test_likelihood_is_the_sum_over_the_reply() -> None:
    """Against the model's own loss, a mean over the same tokens, in float64."""
    model = tiny_blenderbot().double().eval()
    family = format_for(model.config, byte_tokenizer())
    row = Dialogue(("hello there",), "fine, thanks", True, "t", "c")
    (score,) = score_replies(model, family, [row])
    example = family.encode(row)
    labels = torch.tensor([example.reply_ids])
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([example.history_ids]), labels=labels).loss
    assert score.tokens == labels.numel()
    assert score.nll == pytest.approx(float(loss) * score.tokens, rel=1e-10)


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=6), min_size=1, max_size=5))
def test_distinct_equals_its_twin(replies: list[list[str]]) -> None:
    texts = [" ".join(reply) for reply in replies]
    for n in (1, 2):
        assert distinct(texts, n) == pytest.approx(reference.distinct(replies, n))


def test_distinct_without_tokens_is_undefined() -> None:
    assert distinct(["", " "], 1) is None
    assert tokenize("") == []


@given(
    st.lists(st.lists(st.text("abc ", max_size=8), min_size=1, max_size=3), min_size=1, max_size=4)
)
def test_a_corpus_less_a_conversation_is_the_corpus_of_the_others(talks: list[list[str]]) -> None:
    for n in (1, 2):
        left = Corpus(talks, n).without()
        for place in range(len(talks)):
            others = Corpus(talks[:place] + talks[place + 1 :], n)
            assert left[place] == (others.different, others.tokens)


def test_expected_words_by_hand() -> None:
    """Of 2 words, 2 draws give 2 (1 - 1/4) = 1.5 different ones; 1 over it is .667. Drawn at random
    from a vocabulary the ratio is 1 whatever the length, unlike distinct / tokens."""
    assert expectation_adjusted(1, 2, 2) == pytest.approx(2 / 3, abs=1e-6)
    torch.manual_seed(0)
    short, long = (torch.randint(0, 200, (count,)).unique().numel() for count in (50, 800))
    assert expectation_adjusted(short, 50, 200) == pytest.approx(1, abs=0.1)
    assert expectation_adjusted(long, 800, 200) == pytest.approx(1, abs=0.1)
    assert expectation_adjusted(0, 0, 10) is None
    assert expectation_adjusted(1, 5, 1) == 1.0


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (
            "hey do you want to talk about something else? how about cats?",
            {"question", "evasive", "topic_change"},
        ),
        ("i cannot answer that.", {"refusal", "evasive"}),
        ("I’d rather not say.", {"refusal", "evasive"}),
        ("let's talk about something else.", {"topic_change", "evasive"}),
        ("i can't swim but i like the sea.", set()),
        ("i can't help but laugh.", set()),
        ("i can't say enough good things about it.", set()),
        ("i don't talk to my sister much.", set()),
        ("i'm sorry, i don't know.", set()),
        ("i'm not going to talk about that.", {"refusal", "evasive"}),
        ("we're not allowed to discuss it.", {"refusal", "evasive"}),
        ("do you like to talk about your work?", {"question"}),
        ("", set()),
    ],
)
def test_behaviour_by_its_words(reply: str, wanted: set[str]) -> None:
    assert {name for name, holds in behaviour(reply).items() if holds} == wanted


def test_refusals_are_told_from_hard_other_replies() -> None:
    """By hand: those the patterns were tuned on, and those written afterwards."""
    for replies, precision, recall in ((TUNED_ON, 1.0, 0.95), (HELD_OUT, 0.95, 0.85)):
        found = sum(behaviour(reply)["refusal"] for reply in replies[True])
        wrong = sum(behaviour(reply)["refusal"] for reply in replies[False])
        assert found / len(replies[True]) >= recall
        assert found / (found + wrong) >= precision


@pytest.mark.parametrize("mark", ["'", "\u2019", "\u2018", "\u02bc", ""])
def test_a_refusal_has_any_apostrophe(mark: str) -> None:
    for reply in ("I'm sorry, but I can't help with that.", "I won't answer that."):
        acts = behaviour(reply.replace("'", mark))
        assert acts["refusal"]
        assert acts["evasive"]


def test_a_new_pattern_makes_scores_anew(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [Pipeline(load_recipe(recipe_file), Display(Console(file=StringIO()))) for _ in range(2)]
    before = jobs[0].evaluation._scoring_fingerprint
    monkeypatch.setattr("flatgd.pipeline.evaluate_stage.PATTERNS", ("other",))
    assert jobs[1].evaluation._scoring_fingerprint != before
