"""Guides: equal to their formula on recorded logits; strength 0 is the model itself."""

import copy
from typing import Any

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from torch.nn.functional import logsigmoid
from transformers import LogitsProcessor

from flatgd.config.recipe import Generate
from flatgd.dialogue import Dialogue
from flatgd.methods import DExperts, GeDi
from flatgd.methods.director import DirectorGuide
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import IGNORE
from flatgd.models.generate import generate_replies
from flatgd.models.guides import Stream
from flatgd.models.heads import reply_log_probs
from flatgd.models.likelihood import score_replies

MAKERS = {"blenderbot": tiny_blenderbot, "llama": tiny_llama}
HISTORIES = [
    Dialogue(turns, "fine, thank you.", True, "test", f"c{number}")
    for number, turns in enumerate(
        [("hello there",), ("do you like tea?", "yes"), ("what is up with the weather?",)]
    )
]


def guides(kind: str) -> dict[str, Any]:
    clean, toxic = MAKERS[kind](3), MAKERS[kind](4)
    weight = torch.randn(260, 16, generator=torch.Generator().manual_seed(0))
    return {
        "dexperts": DExperts(clean, toxic, strength=1.5),
        "gedi": GeDi(clean, toxic, strength=4.0),
        "director": DirectorGuide(weight, strength=2.0),
    }


class Record(LogitsProcessor):
    """Keeps what goes into a guide's processor and what comes out."""

    def __init__(self, inner: LogitsProcessor):
        self.inner, self.seen = inner, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        out = self.inner(input_ids, scores)
        self.seen.append((input_ids.clone(), scores.clone(), out.clone()))
        return out


def whole_logits(model: Any, prompt: dict, ids: torch.Tensor, repeat: int) -> torch.Tensor:
    """Logits [R, T, V] over prompt and reply by one forward without a cache."""
    mask = prompt["attention_mask"].repeat_interleave(repeat, 0)
    if "decoder_input_ids" in prompt:
        source = prompt["input_ids"].repeat_interleave(repeat, 0)
        return model(input_ids=source, attention_mask=mask, decoder_input_ids=ids).logits
    mask = torch.cat([mask, mask.new_ones(len(ids), ids.shape[1] - mask.shape[1])], 1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return model(input_ids=ids, attention_mask=mask, position_ids=positions).logits


def hidden(model: Any, prompt: dict, ids: torch.Tensor, repeat: int) -> torch.Tensor:
    """The last hidden state at the last position [R, D]."""
    seen = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    whole_logits(model, prompt, ids, repeat)
    handle.remove()
    return seen[0][:, -1]


def formula(name: str, guide: Any, model: Any, prompt: dict, ids: torch.Tensor, base: Any) -> Any:
    """What a guide's logits should be, from whole forwards over the text so far."""
    repeat = len(ids) // len(prompt["input_ids"])
    if name == "director":
        states = hidden(model, prompt, ids, repeat)
        return base + guide.strength * logsigmoid(states @ guide.weight.T)
    clean, toxic = (
        whole_logits(expert, prompt, ids, repeat).log_softmax(-1) for expert in guide.models()
    )
    if name == "dexperts":
        return base + guide.strength * (clean[:, -1] - toxic[:, -1])
    begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
    rows = []
    for row in range(len(ids)):  # Bayes' rule, token by token
        evidence = 0.0
        for place in range(begin, ids.shape[1]):
            token = ids[row, place]
            evidence += clean[row, place - 1, token] - toxic[row, place - 1, token]
        length = ids.shape[1] - begin + 1
        rows.append(torch.sigmoid((evidence + clean[row, -1] - toxic[row, -1]) / length).log())
    return base + guide.strength * torch.stack(rows)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["dexperts", "gedi", "director"])
def test_guide_equals_its_formula_on_recorded_logits(kind: str, name: str) -> None:
    model, guide = MAKERS[kind](1).eval(), guides(kind)[name]
    family = format_for(model.config, byte_tokenizer())
    prompt = family.prompt([family.encode(row) for row in HISTORIES])
    record = Record(guide.processor(model, prompt))
    torch.manual_seed(0)
    model.generate(
        **prompt,
        do_sample=True,
        max_new_tokens=6,
        num_return_sequences=2,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=[record],
    )
    assert len(record.seen) == 6
    with torch.no_grad():
        for ids, base, out in record.seen:
            wanted = formula(name, guide, model, prompt, ids, base)
            assert (out - wanted).abs().max() < 2e-4


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["dexperts", "gedi", "director"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_strength_0_is_the_model_token_for_token(kind: str, name: str, temperature: float) -> None:
    model, guide = MAKERS[kind](1), guides(kind)[name]
    family = format_for(model.config, byte_tokenizer())
    settings = Generate(samples=4, max_new_tokens=12, top_p=0.8, temperature=temperature)
    plain = generate_replies(model, family, HISTORIES, settings, seed=3)
    loud = generate_replies(model, family, HISTORIES, settings, seed=3, guide=guide)
    guide.strength = 0.0
    guided = generate_replies(model, family, HISTORIES, settings, seed=3, guide=guide)
    assert guided.texts == plain.texts != loud.texts
    assert guided.tokens == plain.tokens
    own = score_replies(model, family, HISTORIES)
    same = score_replies(model, family, HISTORIES, log_probs=guide.log_probs)
    assert [a.nll for a in own] == pytest.approx([b.nll for b in same], rel=1e-5)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["dexperts", "gedi", "director"])
def test_scored_replies_and_generated_ones_are_of_one_distribution(kind: str, name: str) -> None:
    """The distribution over given replies is that of the processor, step by step."""
    model, guide = MAKERS[kind](1).eval(), guides(kind)[name]
    family = format_for(model.config, byte_tokenizer())
    example = family.encode(HISTORIES[1])
    batch = family.collate([example])
    with torch.no_grad():
        given = guide.log_probs(model, batch)
        assert given.logsumexp(-1).abs().max() < 1e-4
        prompt = family.prompt([example])
        processor = guide.processor(model, prompt)
        start = prompt.get("decoder_input_ids", prompt["input_ids"])
        for step in range(len(example.reply_ids)):
            said = torch.tensor([example.reply_ids[:step]], dtype=torch.long)
            ids = torch.cat([start, said], 1)
            base = whole_logits(model, prompt, ids, 1)[:, -1]
            out = processor(ids, base).log_softmax(-1)
            assert (out[0] - given[step]).abs().max() < 2e-4


def test_the_nucleus_is_that_of_the_model() -> None:
    """What lies outside the model's own nucleus stays impossible, whatever the experts say."""
    model, guide = tiny_blenderbot(1).eval(), guides("blenderbot")["dexperts"]
    family = format_for(model.config, byte_tokenizer())
    prompt = family.prompt([family.encode(HISTORIES[0])])
    with torch.no_grad():
        base = model(**prompt).logits[:, -1]
        out = guide.processor(model, prompt, top_p=0.5)(prompt["decoder_input_ids"], base)
    order = base.softmax(-1).sort(descending=True)
    kept = int((order.values.cumsum(-1) < 0.5).sum()) + 1
    assert set(out.isfinite().nonzero()[:, 1].tolist()) == set(order.indices[0, :kept].tolist())


@pytest.mark.parametrize("kind", MAKERS)
def test_a_stream_reads_again_when_rows_change_places(kind: str) -> None:
    """As under beam search: after a swap it says what a new stream says."""
    expert = MAKERS[kind](3).eval()
    family = format_for(expert.config, byte_tokenizer())
    prompt = family.prompt([family.encode(row) for row in HISTORIES[:2]])
    start = prompt.get("decoder_input_ids", prompt["input_ids"])
    stream = Stream(expert, prompt)
    more = torch.tensor([[7, 8, 9], [20, 21, 22]])
    stream.read(start)
    stream.read(torch.cat([start, more[:, :1]], 1))
    swapped = torch.cat([start, more.flip(0)[:, :2]], 1)
    got, want = stream.read(swapped), Stream(expert, prompt).read(swapped)
    assert torch.allclose(got[0], want[0], atol=1e-5)
    assert torch.allclose(got[1], want[1], atol=1e-5)


def test_beam_search_runs_under_a_guide() -> None:
    model, guide = tiny_blenderbot(1), guides("blenderbot")["gedi"]
    family = format_for(model.config, byte_tokenizer())
    prompt = family.prompt([family.encode(row) for row in HISTORIES])
    said = model.generate(
        **prompt,
        num_beams=3,
        max_new_tokens=5,
        pad_token_id=0,
        logits_processor=[guide.processor(model, prompt)],
    )
    assert len(said) == 3


def test_experts_with_a_padded_vocabulary_keep_silent_on_the_padding() -> None:
    model = tiny_blenderbot(1).eval()
    model.resize_token_embeddings(272)
    guide = guides("blenderbot")["dexperts"]
    family = format_for(model.config, byte_tokenizer())
    batch = family.collate([family.encode(row) for row in HISTORIES])
    with torch.no_grad():
        plain, guided = reply_log_probs(model, batch), guide.log_probs(model, batch)
    ratio = (guided - plain)[:, 260:]
    assert (ratio - ratio[:, :1]).abs().max() < 1e-5  # moved by the normalisation alone


def test_director_leaves_no_hook_behind() -> None:
    model, guide = tiny_blenderbot(1), guides("blenderbot")["director"]
    family = format_for(model.config, byte_tokenizer())
    settings = Generate(samples=1, min_new_tokens=1, max_new_tokens=3)
    generate_replies(model, family, HISTORIES, settings, seed=0, guide=guide)
    score_replies(model, family, HISTORIES, log_probs=guide.log_probs)
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert copy.deepcopy(model) is not model
    assert (family.collate([family.encode(HISTORIES[0])])["targets"] != IGNORE).any()
