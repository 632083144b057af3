"""Encoding for both families, the head on real positions only, token maps, loading."""

from pathlib import Path

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama

from flatgd.errors import ModelError
from flatgd.evaluation.likelihood import score_replies
from flatgd.models import (
    IGNORE,
    Causal,
    EncoderDecoder,
    check_token_map,
    family_of,
    load_model,
    load_tokenizer,
    reply_log_probs,
    reply_tokens,
    split_batch,
)
from flatgd.records import Dialogue

ROWS = [
    Dialogue(("hi", "hello, how are you?"), "fine!", True, "t", "a"),
    Dialogue(("what is this?",), "a long reply to it", False, "t", "b"),
    Dialogue((), "no history at all", True, "t", "c"),
]


def both_families(max_history: int = 64, max_reply: int = 40) -> list:
    tokenizer = byte_tokenizer()
    blenderbot, llama = tiny_blenderbot().eval(), tiny_llama().eval()
    return [
        (blenderbot, family_of(blenderbot.config, tokenizer, max_history, max_reply)),
        (llama, family_of(llama.config, tokenizer, max_history, max_reply)),
    ]


def test_families_are_told_by_their_config() -> None:
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
        whole = family.history_ids(ROWS[1].history)
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
        together = score_replies(model, family, ROWS, batch_size=8)
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
    family = family_of(tiny_llama().config, tokenizer)
    for turns, wanted in (
        (("a", "b", "c"), "[user]a[assistant]b[user]c[assistant]"),
        (("b", "c"), "[user]c[assistant]"),
        ((), "[user][assistant]"),
    ):
        assert tokenizer.decode(family.history_ids(turns)).strip() == wanted


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
        family_of(config, byte_tokenizer())
