"""Rows encoded once for a whole run: exactly as one by one, in any dialogue format."""

import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import PropertyMock, patch

import pytest
from conftest import byte_tokenizer, tiny_llama
from families import FAMILIES
from shapes import ROWS, SHAPES, A, U, config, family, said, tokenizer
from tokenizers import AddedToken, normalizers, pre_tokenizers

from flatgd.dialogue import Dialogue
from flatgd.errors import DataError
from flatgd.models import encoding
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoded_rows import WAYS_KEPT, EncodedGroups, JoinedRows, RowEncoder, id_digests
from flatgd.models.encoding import DialogueFormat, Example
from flatgd.models.text_encoder import TextEncoder

FORGED = "a <|start|> b</s><|end|>\ufdd0</s>\ufdd1 c"
LETTERS = [*" \n\taB7.<|>\u0301\u00e9\u200b\u2581\U0001f375"]
LETTERS += ["<|start|>", "<|end|>", "</s>", "user", "assistant", "[INST]", "t<|st", "goose"]


def rows() -> list[Dialogue]:
    """Every kind of row, long ones and forged ones; several replies to one prompt; equal rows."""
    rng = random.Random(0)
    random_text = ["".join(rng.choices(LETTERS, k=rng.randint(1, 30))) for _ in range(60)]
    found = [*ROWS, said((U, "long " * 40), (A, "er"), (U, "x " * 30), reply="and " * 50)]
    found += [said((U, FORGED), (A, FORGED), (U, "y"), reply=FORGED)]
    found += [said((U, one), reply=other) for one, other in pairwise(random_text)]
    found += [replace(row, reply=text) for row in ROWS for text in ("\n\nx", " y", "</s>")]
    labelled = [replace(row, is_safe=bool(n % 3)) for n, row in enumerate(found)]
    return [*labelled, *labelled[:5]]


def one_by_one(dialogue_format: DialogueFormat, given: list[Dialogue]) -> list[Example]:
    """The plain way: the tokenizer's own call on each whole text, templates by apply_chat_template,
    nothing shared between rows."""
    with ExitStack() as stack:
        slow = PropertyMock(return_value=False)
        stack.enter_context(patch.object(TextEncoder, "is_fast", slow))
        plain = replace(dialogue_format)
        if getattr(plain, "chat", False):
            plain.template._renders_plainly = False  # type: ignore[attr-defined]
        return [plain.encode(row)._replace(row=n) for n, row in enumerate(given)]


def check_exact(dialogue_format: DialogueFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "CHUNK", 16)  # many parts, in several threads
    given = rows()
    wanted = one_by_one(dialogue_format, given)
    encoder = RowEncoder(given[::2])
    assert list(encoder.encode(dialogue_format, given)) == wanted
    assert dialogue_format.encode_all(given) == [e._replace(row=-1) for e in wanted]
    again = encoder.encode(replace(dialogue_format), given[::-1], first=7)
    assert list(again) == [e._replace(row=7 + n) for n, e in enumerate(wanted[::-1])]


@pytest.mark.parametrize("limit", [60, 2000])
@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_encoded_exactly(
    name: str, kind: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_exact(family(SHAPES[name], kind, limit), monkeypatch)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_encoded_exactly(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Callable[..., Any] = FAMILIES[name]
    model, words = build(tmp_path) if name == "blenderbot-small" else build()
    check_exact(format_for(model.config, words, 100, 40), monkeypatch)


def added(*tokens: AddedToken) -> Any:
    words = tokenizer(SHAPES["no BOS in the template"])
    words.add_tokens(list(tokens))
    return words


def first_position() -> Any:
    words = tokenizer(SHAPES["no BOS in the template"], "words")
    core = words.backend_tokenizer
    core.normalizer = normalizers.Sequence([])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return words


def split_specials() -> Any:
    words = tokenizer(SHAPES["no BOS in the template"])
    words.split_special_tokens = True
    return words


@pytest.mark.parametrize(
    ("made", "breaks"),
    [
        (lambda: added(AddedToken("goose", normalized=False)), True),
        (lambda: tokenizer(SHAPES["no BOS in the template"], "words"), True),
        (lambda: added(AddedToken("<|start|>assistant", normalized=False)), False),
        (lambda: added(AddedToken("t<|st", normalized=False)), False),
        (lambda: added(AddedToken("goose", single_word=True)), False),
        (lambda: added(AddedToken("<|start|>", special=True, rstrip=True)), False),
        (lambda: added(AddedToken("<|start|>", special=True, lstrip=True)), False),
        (lambda: added(AddedToken("<|start|>", special=True, normalized=True)), False),
        (first_position, False),
        (split_specials, False),
    ],
    ids=[
        "apart",
        "words",
        "longer",
        "overlap",
        "word",
        "rstrip",
        "lstrip",
        "normalized",
        "first",
        "split",
    ],
)
def test_tokens_that_depend_on_their_neighbours_are_no_break(
    made: Callable[[], Any], breaks: bool
) -> None:
    words, rng = made(), random.Random(1)
    text = TextEncoder(words, 10_000)
    assert bool(text.break_in("<|start|>user\nhi<|end|>\n<|start|>assistant\n")) is breaks
    for _ in range(2000):
        before, after = ("".join(rng.choices(LETTERS, k=rng.randint(0, 9))) for _ in range(2))
        place = text.break_in(before)
        whole, left, right = text.ids([before + after, before[:place], before[place:] + after])
        assert whole == left + right


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of texts with each call of the tokenizer."""
    calls: list[int] = []
    original = TextEncoder.ids

    def ids(self: TextEncoder, texts: Any) -> list[list[int]]:
        calls.append(len(texts))
        return original(self, texts)

    monkeypatch.setattr(TextEncoder, "ids", ids)
    return calls


def test_rows_are_encoded_once_and_those_ahead_with_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [replace(said((U, f"{n // 3}"), reply=f"{n}"), is_safe=n % 2 == 0) for n in range(12)]
    encoder = RowEncoder(given)
    first, again = (family(SHAPES["dated"]) for _ in range(2))
    calls = counted(monkeypatch)
    safe = encoder.encode(first, [row for row in given if row.is_safe])
    assert 12 + 4 <= sum(calls) <= 12 + 4 + 2  # each reply, each prompt, the rest of the prompts
    before = sum(calls)
    toxic = encoder.encode(again, [row for row in given if not row.is_safe])
    every = encoder.encode(again, [*given, *given])
    assert sum(calls) == before
    assert [e.reply_ids for e in every[:12:2]] == [e.reply_ids for e in safe]
    assert [e.reply_ids for e in every[13::2]] == [e.reply_ids for e in toxic]
    assert [e.row for e in every] == list(range(24))
    encoder.encode(again, [said((U, "other"))])  # not ahead: nothing else is encoded with it
    assert sum(calls) - before <= 3


def test_a_row_that_does_not_fit_is_no_error_of_others_and_reported_each_time() -> None:
    fits, bad = said((U, "a")), replace(said((U, "a"), system="be kind " * 60), where="rows:7")
    chat = family(SHAPES["no BOS in the template"], limit=80)
    encoder = RowEncoder([fits, bad])
    assert len(encoder.encode(chat, [fits])) == 1
    same = replace(bad, where="rows:9")
    for _ in range(2):
        with pytest.raises(DataError) as refused:
            encoder.encode(chat, [fits, bad, same])
        assert [problem.path for problem in refused.value.problems] == ["rows:7", "rows:9"]


def changed_formats() -> list[DialogueFormat]:
    """Formats that differ in one thing each."""
    shape = SHAPES["dated"]
    plain = family(shape)
    words = [tokenizer(shape) for _ in range(5)]
    words[0].add_tokens(["goose"])
    words[1].chat_template += " "
    words[2].eos_token = "</s>"
    words[3].backend_tokenizer.normalizer = normalizers.Lowercase()
    words[4].split_special_tokens = True
    larger = config(words[0])
    return [
        *(format_for(larger, changed, 2000, 2000) for changed in words),
        replace(plain, max_history_tokens=1999),
        replace(plain, max_reply_tokens=1999),
        replace(plain, separator="\t"),
        replace(plain, template_date="2025-01-02"),
        replace(plain, template_kwargs={"enable_thinking": True}),
        replace(plain, vocabulary=plain.vocabulary + 1),
        replace(plain, chat=False),
        replace(plain, prefix=(1,)),
        family(SHAPES["default system message"]),
        format_for(tiny_llama().config, byte_tokenizer(), 2000, 2000),
    ]


def test_whatever_changes_an_encoding_changes_its_identity(tmp_path: Path) -> None:
    plain, same = family(SHAPES["dated"]), family(SHAPES["dated"])
    assert plain.identity() == same.identity() is not None
    formats = [plain, *changed_formats()]
    assert len({made.identity() for made in formats}) == len(formats)
    build: Callable[..., Any] = FAMILIES["blenderbot-small"]  # its tokenizer is Python code
    model, words = build(tmp_path)
    assert format_for(model.config, words).identity() is None
    assert replace(plain, template_kwargs={"tool": object()}).identity() is None


def test_few_ways_of_encoding_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, calls = RowEncoder(), counted(monkeypatch)
    formats = [replace(family(SHAPES["dated"]), max_reply_tokens=n) for n in range(5, 9)]
    for n in range(WAYS_KEPT):
        encoder.encode(formats[n], [ROWS[0]])
    before = len(calls)
    for made in formats[:WAYS_KEPT]:
        encoder.encode(made, [ROWS[0]])
    assert len(calls) == before
    encoder.encode(formats[-1], [ROWS[0]])
    before = len(calls)
    encoder.encode(formats[0], [ROWS[0]])
    assert len(calls) > before


def test_figures_and_digests_of_many_rows_are_those_of_each() -> None:
    chat = family(SHAPES["strict alternation, no system"], limit=40)
    given = rows()
    encoder = RowEncoder(given)
    found = encoder.encode(chat, given)
    plain = list(found)
    history, reply = found.lengths()
    assert history.tolist() == [len(e.history_ids) for e in plain]
    assert reply.tolist() == [len(e.reply_ids) for e in plain]
    assert found.cut() == sum(e.cut_tokens > 0 for e in plain) > 0
    notes = [note for e in plain for note in e.notes]
    assert found.notes() == {note: notes.count(note) for note in dict.fromkeys(notes)} != {}
    assert found.id_digests() == id_digests(plain)
    assert found.digest() == RowEncoder().encode(chat, given).digest()
    assert found[3:5] == plain[3:5]
    assert found[-1] == plain[-1]
    with pytest.raises(IndexError):
        found[len(found)]
    assert {e.row for e in encoder.encode(chat, given, first=None)} == {-1}


def test_rows_are_joined_whatever_encoder_they_come_from(tmp_path: Path) -> None:
    """The rows of a tokenizer that is Python code are encoded for each question."""
    build: Callable[..., Any] = FAMILIES["blenderbot-small"]
    model, words = build(tmp_path)
    small = format_for(model.config, words, 100, 40)
    given = rows()[:18]
    wanted = one_by_one(small, given)
    encoder = RowEncoder()
    parts = [encoder.encode(small, given[n : n + 6], first=n) for n in (0, 6, 12)]
    joined = JoinedRows([parts[0], encoder.encode(small, [], first=6), *parts[1:]])
    assert len(joined) == 18
    assert list(joined) == joined[:] == wanted
    assert joined[-1] == wanted[-1]
    assert joined[4:8] == wanted[4:8]
    assert id_digests(joined) == id_digests(wanted)
    assert (len(JoinedRows([])), list(JoinedRows([]))) == (0, [])


def test_a_digest_of_rows_changes_with_everything_they_hold() -> None:
    chat = family(SHAPES["strict alternation, no system"], limit=40)
    row = said((U, "one"), reply="x")
    encoder = RowEncoder()
    sets = [
        ([row], 0),
        ([row], 1),
        ([row, row], 0),
        ([replace(row, is_safe=False)], 0),
        ([replace(row, reply="y")], 0),
        ([replace(row, history=("two",))], 0),
        ([said((U, "on"), (U, "e"), reply="x")], 0),
    ]
    digests = {encoder.encode(chat, given, first).digest() for given, first in sets}
    assert len(digests) == len(sets)
    one, other = Example([1, 2], [3], True, 0), Example([1], [2, 3], True, 0)
    assert id_digests([one]) != id_digests([other])


def test_groups_are_single_rows_or_pairs() -> None:
    chat = family(SHAPES["no BOS in the template"])
    encoded = RowEncoder().encode(chat, ROWS[:3])
    single, paired = EncodedGroups(encoded, [1, 1, 1]), EncodedGroups(encoded, [2, 1])
    assert (single.have_pairs(), paired.have_pairs()) == (False, True)
    assert list(single) == [(e,) for e in encoded]
    assert list(paired) == paired[:] == [tuple(encoded[:2]), (encoded[2],)]
    assert (len(single), len(paired), paired[-1]) == (3, 2, (encoded[2],))
