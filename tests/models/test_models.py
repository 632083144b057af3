"""Encoding for both families, the head on real positions only, token maps, loading."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from families import FAMILIES, save_family
from transformers import GenerationConfig

from flatgd.dialogue import Dialogue
from flatgd.errors import ModelError
from flatgd.models.dialogue_format import Causal, EncoderDecoder, format_for
from flatgd.models.encoding import IGNORE
from flatgd.models.heads import in_vocabulary, reply_log_probs, reply_tokens
from flatgd.models.likelihood import score_replies
from flatgd.models.loading import check_token_map, load_config, load_model, load_tokenizer
from flatgd.training.micro_batches import split_batch

ANSWER = (
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"  # what the chat template opens a reply with
)
ROWS = [
    Dialogue(("hi", "hello, how are you?"), "fine!", True, "t", "a"),
    Dialogue(("what is this?",), "a long reply to it", False, "t", "b"),
    Dialogue((), "no history at all", True, "t", "c"),
]


def both_families(max_history: int = 64, max_reply: int = 40) -> list:
    tokenizer = byte_tokenizer()
    blenderbot, llama = tiny_blenderbot().eval(), tiny_llama().eval()
    return [
        (blenderbot, format_for(blenderbot.config, tokenizer, max_history, max_reply)),
        (llama, format_for(llama.config, tokenizer, max_history, max_reply)),
    ]


def test_the_config_decides_the_dialogue_format() -> None:
    (_, one), (_, other) = both_families()
    assert isinstance(one, EncoderDecoder)
    assert isinstance(other, Causal)


def test_blenderbot_layout() -> None:
    """Turns joined by two spaces and closed by </s>; the decoder starts with <s>."""
    _, family = both_families()[0]
    batch = family.collate([family.encode(ROWS[0])])
    text = family.tokenizer.decode(batch["input_ids"][0])
    assert text == " hi  hello, how are you?</s>"
    assert family.tokenizer.decode(batch["decoder_input_ids"][0]) == "<s> fine!"
    assert family.tokenizer.decode(batch["targets"][0]) == " fine!</s>"
    assert batch["is_safe"].tolist() == [True]


def test_causal_targets_are_the_next_tokens() -> None:
    _, family = both_families()[1]
    batch = family.collate([family.encode(row) for row in ROWS])
    for row in range(len(ROWS)):
        positions = (batch["targets"][row] != IGNORE).nonzero().flatten()
        predicted = batch["targets"][row, positions]
        assert torch.equal(batch["input_ids"][row, positions + 1], predicted)
        assert family.tokenizer.decode(predicted).strip() == f"{ROWS[row].reply}</s>"


def test_history_is_cut_at_the_old_end_and_reply_at_its_end() -> None:
    for _, family in both_families(max_history=8, max_reply=4):
        example = family.encode(ROWS[1])
        assert len(example.history_ids) == 8
        assert len(example.reply_ids) == 4
        assert example.cut_tokens > 0
        whole, _ = replace(family, max_history_tokens=64).history(ROWS[1].history)
        assert example.history_ids == whole[-8:]


def test_head_on_real_positions_equals_the_whole_forward() -> None:
    for model, family in both_families():
        batch = family.collate([family.encode(row) for row in ROWS])
        got = reply_log_probs(model, batch)
        inputs = {k: v for k, v in batch.items() if k not in ("targets", "is_safe")}
        whole = model(**inputs).logits[batch["targets"] != IGNORE].float().log_softmax(-1)
        assert torch.allclose(got, whole, atol=1e-5)
        assert reply_tokens(batch)[0].shape[0] == got.shape[0]


def test_padding_and_company_change_nothing() -> None:
    """A row's likelihood is the same alone, in a batch, and in a batch cut to micro-batches."""
    for model, family in both_families():
        together = score_replies(model, family, ROWS, tokens_at_once=400)
        alone = [score_replies(model, family, [row])[0] for row in ROWS]
        for one, other in zip(together, alone, strict=True):
            assert one.tokens == other.tokens
            assert one.nll == pytest.approx(other.nll, abs=1e-4)
        batch = family.collate([family.encode(row) for row in ROWS])
        parts = [reply_log_probs(model, part) for part in split_batch(batch, 1)]
        assert sum(len(part) for part in parts) == len(reply_log_probs(model, batch))


def test_split_sorts_by_label_and_cuts_padding() -> None:
    _, family = both_families()[0]
    batch = family.collate([family.encode(row) for row in ROWS])
    parts = split_batch(batch, 1)
    assert [bool(part["is_safe"].item()) for part in parts] == [False, True, True]
    for part in parts:
        assert part["attention_mask"].all()
        assert (part["targets"] != IGNORE).all()
    assert torch.equal(split_batch(batch, None)[0]["is_safe"], torch.tensor([False, True, True]))


def test_chat_template_is_used_where_there_is_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    family = format_for(tiny_llama().config, tokenizer)
    for turns, wanted in (
        (("a", "b", "c"), "[user]a[assistant]b[user]c[assistant]"),
        (("b", "c"), "[assistant]b[user]c[assistant]"),
        ((), "[user][assistant]"),
    ):
        assert tokenizer.decode(family.history(turns)[0]).strip() == wanted


def test_permuted_token_map_is_refused_by_token() -> None:
    one, other = byte_tokenizer(), byte_tokenizer()
    check_token_map(one, other, ("policy", "expert"))
    other.add_tokens(["goose"])
    with pytest.raises(ModelError, match="'goose'"):
        check_token_map(one, other, ("policy", "expert"))


def test_half_precision_file_loads_as_float32(tmp_path: Path) -> None:
    tiny_blenderbot().half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    model = tiny_blenderbot()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load"):
        load_model(tmp_path)


def test_no_model_and_other_family(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer at"):
        load_tokenizer(str(tmp_path))
    config = tiny_llama().config
    config.model_type = "bert"
    with pytest.raises(ModelError, match="'bert' is not supported"):
        format_for(config, byte_tokenizer())


# Layouts of the families, as their tokenizers decode them


@pytest.mark.parametrize(
    ("name", "history", "reply"),
    [
        ("blenderbot", " Hi  hello!</s>", "<s>| fine.</s>"),
        ("blenderbot-small", "hi __newln__ hello !", "__start__|fine . __end__"),
        ("bart", "<s>Hi\nhello!</s>", "</s><s>|fine.</s>"),
        ("t5", "Hi</s> hello!</s>", "<pad>|fine.</s>"),
        ("gpt2", "Hi\nhello!\n", "|fine.<|endoftext|>"),
        ("llama", "<s> Hi\nhello!\n", "| fine.</s>"),
        ("mistral", "<s> Hi\nhello!\n", "| fine.</s>"),
        (
            "qwen2",
            "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nhello!<|im_end|>\n" + ANSWER,
            "|fine.<|im_end|>",
        ),
        (
            "qwen3",
            "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nhello!<|im_end|>\n" + ANSWER,
            "|fine.<|im_end|>",
        ),
    ],
)
def test_what_each_family_reads_and_says(
    tmp_path: Path, name: str, history: str, reply: str
) -> None:
    folder = save_family(name, tmp_path / name)
    tokenizer = load_tokenizer(str(folder))
    family = format_for(load_config(str(folder)), tokenizer)
    example = family.encode(Dialogue(("Hi", "hello!"), "fine.", True, "a", "a"))
    assert tokenizer.decode(example.history_ids) == history
    start = getattr(family, "start", ())
    said = "|".join(tokenizer.decode(list(ids)) for ids in (start, example.reply_ids))
    assert said == reply
    batch = family.collate([example])
    predicted = batch["targets"][batch["targets"] != IGNORE].tolist()
    assert predicted == example.reply_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_batches_prompts_and_the_model_agree(tmp_path: Path, name: str) -> None:
    """Greedy generation from `prompt` says what the teacher-forced argmax of `collate` says, row by
    row in one padded batch: positions, shifts and masks of both fit."""
    folder = save_family(name, tmp_path / name)
    family = format_for(load_config(str(folder)), load_tokenizer(str(folder)))
    model = load_model(folder).eval()
    asked = [family.encode(row)._replace(reply_ids=[]) for row in ROWS]
    prompt = family.prompt(asked)
    config = GenerationConfig(
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=family.pad,
        decoder_start_token_id=getattr(family, "start", (None,))[0],
    )
    model.generation_config = GenerationConfig()
    output = model.generate(**prompt, generation_config=config)
    begin = prompt.get("decoder_input_ids", prompt["input_ids"]).shape[1]
    said = output[:, begin:].tolist()
    batch = family.collate([e._replace(reply_ids=r) for e, r in zip(asked, said, strict=True)])
    with torch.no_grad():
        most_likely = reply_log_probs(model, batch).argmax(-1)
    assert most_likely.reshape(len(ROWS), 4).tolist() == said


def test_what_stands_around_a_history_is_never_cut(tmp_path: Path) -> None:
    for name, first, last in (("bart", "<s>", "</s>"), ("llama", "<s>", "\n")):
        folder = save_family(name, tmp_path / name)
        tokenizer = load_tokenizer(str(folder))
        family = format_for(load_config(str(folder)), tokenizer, max_history_tokens=8)
        ids, cut = family.history(("a long line of history",))
        assert len(ids) == 8
        assert cut > 0
        text = tokenizer.decode(ids)
        assert text.startswith(first)
        assert text.endswith(last)


def test_a_chat_is_cut_by_whole_turns_and_keeps_its_system_message(tmp_path: Path) -> None:
    folder = save_family("qwen2", tmp_path / "qwen2")
    tokenizer = load_tokenizer(str(folder))
    turns = ("old question", "old answer", "new question")
    whole, none = format_for(load_config(str(folder)), tokenizer, 400).history(turns, "be brief")
    assert none == 0
    assert tokenizer.decode(whole).startswith("<|im_start|>system\nbe brief<|im_end|>\n")
    family = format_for(load_config(str(folder)), tokenizer, len(whole) - 1)
    ids, cut = family.history(turns, "be brief")
    assert "be brief" in tokenizer.decode(ids)
    assert "old question" not in tokenizer.decode(ids)
    assert "old answer" in tokenizer.decode(ids)
    assert cut == len(whole) - len(ids)


def test_a_template_that_refuses_says_what_to_do(tmp_path: Path) -> None:
    folder = save_family("qwen2", tmp_path / "qwen2")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(ModelError, match=r"no system here; set turn_separator"):
        format_for(load_config(str(folder)), tokenizer).history(("a",), "be brief")
    plain = format_for(load_config(str(folder)), tokenizer, turn_separator="<|endoftext|>")
    assert tokenizer.decode(plain.history(("a", "b"))[0]) == "a<|endoftext|>b<|endoftext|>"


def test_vocabularies_padded_to_other_sizes() -> None:
    log_q = torch.randn(3, 5).log_softmax(-1)
    assert in_vocabulary(log_q, 5) is log_q
    wider = in_vocabulary(log_q, 7)
    assert torch.equal(wider[:, :5], log_q)
    assert (wider[:, 5:].exp() == 0).all()
    narrower = in_vocabulary(log_q, 4)
    assert torch.allclose(narrower.exp(), log_q[:, :4].exp() / log_q[:, :4].exp().sum(-1, True))


def test_tokens_beyond_the_vocabulary_are_left_out(tmp_path: Path) -> None:
    """BlenderBot's <mask>: somebody who types it must not reach past the embeddings."""
    folder = save_family("blenderbot", tmp_path / "model")
    tokenizer = load_tokenizer(str(folder))
    config = load_config(str(folder))
    assert tokenizer("<mask>")["input_ids"][-1] >= config.vocab_size
    family = format_for(config, tokenizer)
    example = family.encode(Dialogue(("hi <mask>",), "<mask> hello", True, "a", "a"))
    assert max(example.history_ids + example.reply_ids) < config.vocab_size
