"""Chat templates: rules for what a template refuses, dates, ends, and what stays as written."""

import time
from dataclasses import replace

import pytest
import torch
from conftest import byte_tokenizer, tiny_blenderbot, tiny_llama
from shapes import (
    GEMMA,
    SHAPES,
    STRICT,
    TURNS,
    A,
    Shape,
    U,
    config,
    family,
    said,
    tokenizer,
)
from transformers import GenerationConfig, LlamaForCausalLM

from flatgd.config.recipe import Generate
from flatgd.dialogue import Dialogue, Turn
from flatgd.errors import DataError, ModelError
from flatgd.models import chat_template
from flatgd.models.chat_template import JOINED, MOVED, OPENING, OTHERWISE
from flatgd.models.dialogue_format import declare_stops, declared_stops, format_for
from flatgd.models.encoding import EMPTY
from flatgd.models.generate import generate_replies
from flatgd.models.sampling import sample
from flatgd.runtime.time_limit import time_limit

PLAIN = SHAPES["no BOS in the template"]


def text_of(shape: Shape, row: Dialogue) -> tuple[str, tuple[str, ...]]:
    made = family(shape)
    example = made.encode(row)
    return made.tokenizer.decode(example.history_ids), example.notes


@pytest.mark.parametrize(
    ("row", "wanted", "notes"),
    [
        (said((U, "one"), (U, "two")), "<|start|>user\none\ntwo<|end|>", (JOINED,)),
        (said((U, "one"), system="be kind"), "user\nbe kind\n\none<|end|>", (MOVED,)),
        (said((A, "hello"), (U, "one")), "<|start|>user\none<|end|>", (OPENING,)),
        (
            said((A, "hello"), (U, "one"), (U, "two"), system="be kind"),
            "<|start|>user\nbe kind\n\none\ntwo<|end|>",
            (JOINED, MOVED, OPENING),
        ),
    ],
)
def test_a_strict_template_gets_the_least_change_and_a_note(
    row: Dialogue, wanted: str, notes: tuple[str, ...]
) -> None:
    text, found = text_of(SHAPES["strict alternation, no system"], row)
    assert text.endswith(f"{wanted}<|start|>assistant\n")
    assert text.count("<|start|>") == 2
    assert set(found) == set(notes)


def test_a_lenient_template_shows_a_conversation_as_it_is() -> None:
    row = said((A, "hello"), (U, "one"), (U, ""), (A, "x"), (A, "y"), (U, "two"))
    text, notes = text_of(PLAIN, row)
    roles = [part.partition("\n")[0] for part in text.split("<|start|>")[1:]]
    assert roles == [A, U, U, A, A, U, A]
    assert notes == ()


def test_a_reply_to_the_assistant_itself_is_learnt_by_rule() -> None:
    """Strict templates refuse two turns of the assistant: reply and end as the probe has them."""
    row = said((U, "one"), (A, "two"), reply="three")
    made = family(SHAPES["strict alternation, no system"])
    example = made.encode(row)
    assert made.tokenizer.decode(example.reply_ids) == "three<|end|>"
    assert OTHERWISE in example.notes


def test_a_system_message_that_a_template_drops_goes_into_the_first_turn() -> None:
    silent = "{% for m in messages if m.role != 'system' %}<|start|>{{ m.role }}\n{{ m.content }}"
    silent += "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    text, notes = text_of(Shape(silent), said((U, "one"), system="be kind"))
    assert "be kind\n\none" in text
    assert notes == (MOVED,)


def test_gemmas_roles_and_merged_system_message() -> None:
    row = said((U, "hi"), (A, " hello "), (U, "tea?"), system="be kind", reply=" yes ")
    made = family(Shape(GEMMA, trims=True))
    example = made.encode(row)
    assert made.tokenizer.decode(example.history_ids) == (
        "<s><|start|>user\nbe kind\n\nhi<|end|>\n<|start|>model\nhello<|end|>\n"
        "<|start|>user\ntea?<|end|>\n<|start|>model\n"
    )
    assert made.tokenizer.decode(example.reply_ids) == "yes<|end|>"


def test_a_template_without_the_reply_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="leaves out the assistant's text"):
        family(Shape("{{ messages[0].content }}"))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{% for n in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ messages.x.y }}", "UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "did not end within 0.5 seconds",
        ),
    ],
)
@pytest.mark.parametrize("when", ["", "{% if messages | length > 2 %}"])
def test_a_template_that_fails_or_never_ends_is_refused(
    code: str, reason: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, or where it fails on the conversations of the data alone."""
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.5)
    shape = Shape(f"{when}{code}{'{% endif %}' if when else ''}{TURNS}")
    row = said((U, "one"), (A, "two"), (U, "three"))
    begun = time.monotonic()
    with pytest.raises(ModelError, match=reason):
        family(shape).encode_all([row] * 3)
    assert time.monotonic() - begun < 20


def test_a_time_limit_leaves_the_code_after_it_alone() -> None:
    with time_limit(0.05):
        pass
    time.sleep(0.1)


def test_a_time_limit_interrupts_a_loop() -> None:
    def loop() -> None:
        with time_limit(0.05):
            while True:
                pass

    with pytest.raises(TimeoutError):
        loop()


def test_a_date_in_a_format_that_is_not_written_out_is_refused() -> None:
    shape = Shape("{% set how = '%d' %}{{ strftime_now(how) }}" + TURNS)
    with pytest.raises(ModelError, match="wants a format in quotes"):
        family(shape)


def test_the_date_is_a_field() -> None:
    words = tokenizer(SHAPES["dated"])
    for day, shown in (("2025-01-01", "01 Jan 2025"), ("2031-12-24", "24 Dec 2031")):
        made = format_for(config(words), words, 400, template_date=day)
        assert f"Today Date: {shown}" in words.decode(made.history(["hi"])[0])


def test_template_variables_are_a_field() -> None:
    words = tokenizer(SHAPES["thinking stripped from the history"])
    thinks = format_for(config(words), words, 400, chat_template_kwargs={})
    quiet = format_for(config(words), words, 400)
    assert "<think>" not in words.decode(thinks.history(["hi"])[0])
    assert words.decode(quiet.history(["hi"])[0]).endswith("<think>\n\n</think>\n\n")


def test_what_opens_a_reply_is_learnt_and_not_shown() -> None:
    """Without a generation prompt the model says the header itself."""
    made = family(SHAPES["no generation prompt"])
    ids = made.encode(said((U, "hi"), reply="hello")).reply_ids
    assert made.tokenizer.decode(ids) == "<|start|>assistant\nhello<|end|>"
    assert made.said(ids, [made.end]) == "hello"


@pytest.mark.parametrize("made", ["llama", "blenderbot"])
def test_a_system_message_that_does_not_fit_is_an_error_with_its_line(made: str) -> None:
    model = {"llama": tiny_llama, "blenderbot": tiny_blenderbot}[made]()
    plain = format_for(model.config, byte_tokenizer(), 12)
    chat = replace(family(PLAIN), max_history_tokens=12)
    row = Dialogue(("hi",), "x", True, "t", "c", system="be kind " * 9, where="rows.jsonl:7")
    for encoder in (plain, chat):
        with pytest.raises(DataError, match=r"rows\.jsonl:7: max_history_tokens is 12"):
            encoder.encode_all([replace(row, system=""), row])


def test_all_rows_that_do_not_fit_are_reported_at_once() -> None:
    chat = replace(family(PLAIN), max_history_tokens=12)
    row = Dialogue(("hi",), "x", True, "t", "c", system="be kind " * 9)
    rows = [replace(row, where=f"rows.jsonl:{n}") for n in (2, 5)]
    with pytest.raises(DataError) as refused:
        chat.encode_all(rows)
    assert [problem.path for problem in refused.value.problems] == ["rows.jsonl:2", "rows.jsonl:5"]


def test_empty_turns_are_left_out_where_there_are_no_roles() -> None:
    plain = format_for(tiny_llama().config, byte_tokenizer())
    example = plain.encode(said((U, "a"), (A, ""), (U, "b")))
    assert plain.tokenizer.decode(example.history_ids).split() == ["a", "b"]
    assert example.notes == (EMPTY,)


def test_a_separator_may_be_special_but_text_may_not() -> None:
    words = tokenizer(Shape(None, eos="</s>"))
    plain = format_for(config(words), words, 400, turn_separator="</s>")
    example = plain.encode(said((U, "a </s> b"), (A, "c"), (U, "d")))
    assert example.history_ids.count(words.eos_token_id) == 3
    assert words.decode(example.history_ids) == "a </s> b</s>c</s>d</s>"


def test_encoding_many_is_encoding_each() -> None:
    rows = [
        said((U, f"question {n}" * (1 + n % 3)), (A, "</s>"), (U, "x"), system="s" * (n % 2))
        for n in range(40)
    ]
    for shape in (PLAIN, Shape(STRICT), Shape(None, eos="</s>")):
        made = replace(family(shape), max_history_tokens=24)
        assert made.encode_all(rows) == [made.encode(row) for row in rows]


def stops_before_end(ids: list[int], stops: list[int]) -> int:
    return sum(token in stops for token in ids[:-1])


def test_generation_stops_at_each_declared_end_and_at_the_learnt_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All tokens alike likely: without the ends, most replies would run on."""
    words = tokenizer(SHAPES["end of turn is not eos"])
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(words)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    extra = {words.convert_tokens_to_ids(token) for token in ("e", "a")}
    model.generation_config = GenerationConfig(eos_token_id=sorted(extra))
    made = format_for(model.config, words, 400)
    stops = declared_stops(model, made)
    assert set(stops) == {made.end, words.eos_token_id, 2, *extra}
    seen: list[list[int]] = []
    monkeypatch.setattr(
        "flatgd.models.generate.sample", lambda *given: seen.extend(sample(*given)) or seen
    )
    settings = Generate(samples=40, max_new_tokens=400, min_new_tokens=1)
    replies = generate_replies(model, made, [said((U, "hi"))], settings, seed=0)
    ended = 0
    for ids in seen:
        assert stops_before_end(ids, stops) == 0
        ended += ids[-1] in stops
    assert ended > 30
    assert len(replies.texts[0]) == 40


def test_the_learnt_end_is_written_into_the_checkpoint() -> None:
    words = tokenizer(SHAPES["end of turn is not eos"])
    model = LlamaForCausalLM(config(words, eos_token_id=words.eos_token_id))
    made = format_for(model.config, words, 400)
    declare_stops(model, made)
    assert set(model.generation_config.eos_token_id) == {made.end, words.eos_token_id}


def test_turns_of_a_history_are_strings_or_turns_not_both() -> None:
    assert Dialogue(("a", "b"), "c", True, "s", "c").history == (Turn(A, "a"), Turn(U, "b"))
    assert Dialogue(("a",), "c", True, "s", "c", "human").history == (Turn(A, "a"),)
    with pytest.raises(ValueError, match="not both"):
        Dialogue(("a", Turn(U, "b")), "c", True, "s", "c")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bert", "t5gemma", "clip"])
def test_other_models_are_refused_by_name(kind: str) -> None:
    settings = tiny_llama().config
    settings.model_type = kind
    settings.is_encoder_decoder = kind == "t5gemma"
    with pytest.raises(ModelError, match=f"{kind!r} is not supported"):
        format_for(settings, byte_tokenizer())
