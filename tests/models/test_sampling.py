"""Sampling and scoring with histories that are read once, against the plain ways."""

from dataclasses import replace

import pytest
import torch
from families import FAMILIES, RECURRENT, save_family
from test_models import both_families
from transformers import GenerationConfig, TopPLogitsWarper

from flatgd.config.recipe import Generate
from flatgd.dialogue import Dialogue
from flatgd.models.batching import token_batches
from flatgd.models.dialogue_format import declared_stops, format_for
from flatgd.models.generate import generate_replies
from flatgd.models.heads import reply_log_probs
from flatgd.models.likelihood import score_replies
from flatgd.models.loading import load_model, load_tokenizer
from flatgd.models.reader import Reader
from flatgd.models.sampling import drawn, sample, uniform_numbers

ROWS = [
    Dialogue(turns, reply, True, "t", "t")
    for turns in (("hello there",), ("do you like tea?", "yes, a lot"), ("what is up with it?",))
    for reply in ("fine!", "not so well, it rains", "o")
]


@pytest.fixture(scope="module", params=[*FAMILIES, *RECURRENT])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    folder = str(save_family(request.param, tmp_path_factory.mktemp(request.param) / "model"))
    model = load_model(folder).double().eval()
    return model, format_for(model.config, load_tokenizer(folder), 100, 24)


def test_what_can_be_cached_is(family: tuple) -> None:
    """Only recurrent states are read again."""
    model, made = family
    with torch.no_grad():
        reader = Reader(model, made.prompt(made.encode_histories(ROWS[:1])))
    assert (reader.cache is None) == (model.config.model_type in RECURRENT)


def test_greedy_replies_are_those_of_generate(family: tuple) -> None:
    """A nucleus of one token leaves no choice."""
    model, made = family
    prompt = made.prompt(made.encode_histories(ROWS[::3]))
    stops = declared_stops(model, made)
    greedy = Generate(top_p=1e-9, min_new_tokens=2, max_new_tokens=12)
    uniform = torch.rand(3, 2, 12, dtype=torch.float64)
    with torch.no_grad():
        found = sample(model, prompt, greedy, stops, uniform)
        model.generation_config = GenerationConfig(  # without what the checkpoint forces
            do_sample=False, min_new_tokens=2, max_new_tokens=12, eos_token_id=stops,
            pad_token_id=made.pad, decoder_start_token_id=getattr(made, "start", (0,))[0],
        )  # fmt: skip
        wanted = model.generate(**prompt)
    begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
    for row, ids in enumerate(wanted[:, begin:].tolist()):
        end = next((n + 1 for n, token in enumerate(ids) if token in stops), len(ids))
        assert found[2 * row] == found[2 * row + 1] == ids[:end]


def test_a_history_read_once_gives_each_reply_its_likelihood(family: tuple) -> None:
    model, made = family
    together = score_replies(model, made, ROWS)
    alone = [score_replies(model, made, [row])[0] for row in ROWS]
    plain = score_replies(model, made, ROWS, log_probs=reply_log_probs)
    for shared, one, whole in zip(together, alone, plain, strict=True):
        assert shared.tokens == one.tokens == whole.tokens
        assert shared.nll == pytest.approx(one.nll, rel=1e-6)
        assert shared.nll == pytest.approx(whole.nll, rel=1e-6)


def test_a_beginning_read_once_changes_no_likelihood(family: tuple) -> None:
    """Seven histories of different lengths, with one system message."""
    model, made = family
    rows = [
        Dialogue((f"word {'x' * n}",), f"reply {'y' * (9 - n)}", True, "t", "t", system="be kind")
        for n in range(7)
    ]
    together = score_replies(model, replace(made, max_history_tokens=140), rows)
    for row, found in zip(rows, together, strict=True):
        (alone,) = score_replies(model, replace(made, max_history_tokens=140), [row])
        assert found.nll == pytest.approx(alone.nll, rel=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_replies_do_not_depend_on_their_batch(which: int) -> None:
    """Nor on rows that have ended and left it."""
    model, made = both_families()[which]
    model.double()
    texts = [
        generate_replies(
            model, made, ROWS[::3], Generate(samples=4, max_new_tokens=30, batch_size=size), seed=5
        ).texts
        for size in (1, 3)
    ]
    assert texts[0] == texts[1]


def test_tokens_are_drawn_by_their_probability() -> None:
    """Evenly spaced random numbers hit each token as often as its probability says."""
    scores = torch.tensor([1.0, -0.5, float("-inf"), 2.0, 0.0])
    count = 10_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for temperature, top_p in ((1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (2.0, 0.6)):
        kept = TopPLogitsWarper(top_p)(torch.empty(0), scores[None] / temperature)
        wanted = kept.softmax(-1)[0].double()
        tokens = drawn(scores.expand(count, -1), temperature, top_p, uniform)
        found = tokens.bincount(minlength=5).double() / count
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0.0)


def test_a_nucleus_of_many_tokens() -> None:
    """With even probabilities the nucleus is wider than the tokens that are looked at first."""
    tokens = drawn(torch.zeros(1, 5000), 1.0, 0.9, torch.tensor([0.999999]))
    assert 1024 < int(tokens) < 5000
    assert int(drawn(torch.zeros(1, 5000), 1.0, 1.0, torch.tensor([0.0]))) == 0
    assert int(drawn(torch.zeros(1, 5000), 1.0, 1.0, torch.tensor([1.0]))) == 4999


def test_random_numbers_differ_by_seed_and_row() -> None:
    seen = [uniform_numbers(seed, row, 2, 3) for seed in (0, 1) for row in (0, 1)]
    assert all(not torch.equal(a, b) for n, a in enumerate(seen) for b in seen[:n])
    assert torch.equal(seen[0], uniform_numbers(0, 0, 2, 3))


def test_batches_hold_at_most_the_budget() -> None:
    lengths = [7, 1, 30, 2, 2, 9, 1]
    batches = list(token_batches(lengths, 12, most=3))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    for batch in batches:
        width = max(lengths[row] for row in batch)
        assert len(batch) == 1 or len(batch) * width <= 12
        assert len(batch) <= 3
    assert list(token_batches([], 12)) == []
