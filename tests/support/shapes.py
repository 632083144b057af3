"""Every shape of chat template that people have, and what must hold for each.

`python tests/support/shapes.py` prints the table of docs/models.md: shapes by invariants.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from flatgd.dialogue import Dialogue, Turn
from flatgd.errors import DataError, ModelError
from flatgd.models.dialogue_format import declared_stops, format_for
from flatgd.models.encoding import APART, DialogueFormat

SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<|start|>", "<|end|>", "<think>", "</think>"]
TURNS = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
STRICT = (
    "{% set chat = messages %}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in chat %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set chat = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set chat = messages %}{% endif %}"
    "{% for m in chat %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "<|start|>{{ role }}\n{{ first if loop.first else '' }}{{ m.content | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}{% set said = m.content.split('</think>')[-1].lstrip('\n') %}"
    "<|start|>{{ m.role }}\n{{ said }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
DATED = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}"
    "<|start|>system\nToday Date: {{ day | default('26 Jul 2024') }}\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set chat = messages[1:] %}"
    "{% else %}{% set chat = messages %}{% endif %}<|end|>\n"
    + TURNS.replace("in messages", "in chat")
)
DEFAULT = "{% if messages[0].role != 'system' %}<|start|>system\nBe kind.<|end|>\n{% endif %}"
TRIMMED = TURNS.replace("m.content", "m.content | trim")
NO_PROMPT = "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>{% endfor %}"
INST = (  # Llama 2: the answer follows [/INST], the end is the tokenizer's
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}"
    "{% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A template, and which of its tokenizer's tokens is what."""

    template: str | None
    eos: str = "<|end|>"
    pad: str = "<pad>"
    trims: bool = False
    cuts: frozenset[str] = frozenset()  # text that the template itself cuts at
    rules: frozenset[int] = field(default_factory=frozenset)  # invariants kept by a stated rule


SHAPES: dict[str, Shape] = {
    "no BOS in the template": Shape(TURNS),
    "BOS in the template": Shape("{{ bos_token }}" + TURNS),
    "default system message": Shape(DEFAULT + TURNS),
    "system in the first user turn (Gemma 3)": Shape(GEMMA, trims=True),
    "strict alternation, no system": Shape(STRICT),
    "thinking stripped from the history": Shape(
        THINKING, cuts=frozenset({"</think>"}), rules=frozenset({2})
    ),
    "trimmed text": Shape(TRIMMED, trims=True),
    "no line break after the end of turn": Shape(TURNS.replace("<|end|>\n", "<|end|>")),
    "dated": Shape(DATED),
    "end of turn is not eos": Shape(TURNS, eos="</s>"),
    "pad is eos": Shape(TURNS, pad="<|end|>"),
    "no generation prompt": Shape(NO_PROMPT),
    "answer after [/INST] (Llama 2)": Shape(INST, eos="</s>"),
    "no end of turn": Shape(NO_END, eos="</s>", rules=frozenset({2})),
    "no template": Shape(None, eos="</s>"),
}
TEXT = (
    "how are you today? fine, thanks.\n\n1. boil water\n2. pour it over the leaves\n"
    "    tea = cup()\ncaf\u00e9 \U0001f375 [INST] [/INST] ### user: assistant: system model Date"
)


def tokenizer(shape: Shape, kind: str = "bytes") -> PreTrainedTokenizerBase:
    """BPE with merges: over bytes as GPT-2's, or over words with their space as Llama 2's."""
    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        core.normalizer = normalizers.Replace(" ", "\u2581")
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
        core.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet = []
    special = [*SPECIALS, *(f"<0x{n:02X}>" for n in range(256) if kind != "bytes")]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([TEXT] * 4, trainer)
    if kind != "bytes":  # the byte tokens are part of the vocabulary, not special
        core = _without_added(core)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token=shape.eos,
        pad_token=shape.pad,
        unk_token="<unk>",
        additional_special_tokens=["<|start|>", *({"<|end|>"} - {shape.eos})],
        chat_template=shape.template,
        clean_up_tokenization_spaces=False,
    )


def _without_added(core: Tokenizer) -> Tokenizer:
    import json

    raw = json.loads(core.to_str())
    raw["added_tokens"] = [t for t in raw["added_tokens"] if t["content"] in SPECIALS]
    return Tokenizer.from_str(json.dumps(raw))


def config(words: PreTrainedTokenizerBase, **fields: Any) -> LlamaConfig:
    given = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    given |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    given |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(words)}
    return LlamaConfig(**{**given, **fields})


def family(shape: Shape, kind: str = "bytes", limit: int = 2000) -> DialogueFormat:
    words = tokenizer(shape, kind)
    return format_for(config(words), words, limit, limit)


def said(*turns: tuple[str, str], reply: str = "fine, thanks.", system: str = "") -> Dialogue:
    history = tuple(Turn(role, text) for role, text in turns)  # type: ignore[arg-type]
    return Dialogue(history, reply, True, "t", "c", system=system)


U, A = "user", "assistant"
ROWS = [
    said((U, "how are you?")),
    said((U, "how are you?"), (A, "fine."), (U, "tea?"), reply="yes\n\n1. boil\n2. pour"),
    said((U, "how are you?"), system="be brief"),
    said(
        (U, "a"), (A, "b"), (U, "c"), reply="    tea = cup()\n    pour(tea)", system="be\n\nbrief"
    ),
    said((U, "caf\u00e9 \U0001f375"), reply="caf\u00e9 \u00e9\n\u200bx"),
    said((U, "one"), (U, "two")),
    said((A, "hello"), (U, "hi")),
    said((U, "hi"), (A, ""), (U, "still there?")),
    said((U, "a"), (A, "b"), (A, "c"), (U, "d")),
    said((U, " spaces around "), reply="x"),
    said((U, "a"), reply="ends with a break\n"),
    said(reply="no history"),
]


def rendered(made: Any, messages: Sequence[dict[str, str]], prompt: bool) -> list[int]:
    """The template's own ids, as anybody gets them by plain transformers."""
    return list(
        made.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=prompt, tokenize=True, return_dict=False,
            **made.template._kwargs,
        )
    )  # fmt: skip


def prompt_is_the_templates(shape: Shape, kind: str) -> None:
    made: Any = family(shape, kind)
    for row, prompt in zip(ROWS, made.prompts(ROWS), strict=True):
        assert prompt.ids == rendered(made, prompt.messages, True)
        if not prompt.notes:  # nothing was changed: the messages are those of the row
            system = [row.system] if row.system else []
            texts = [m["content"] for m in prompt.messages]
            assert texts == [*system, *(row.texts or [""])]


def target_is_what_the_template_adds(shape: Shape, kind: str) -> None:
    made: Any = family(shape, kind)
    prompts, examples = made.prompts(ROWS), made.encode_all(ROWS)
    for row, prompt, example in zip(ROWS, prompts, examples, strict=True):
        if example.notes and 2 in shape.rules:
            continue
        whole = rendered(made, [*prompt.messages, {"role": A, "content": row.reply}], False)
        ids = example.history_ids + example.reply_ids
        if APART in example.notes:  # the same text in other tokens
            assert kind == "words" or row.reply[0].isspace()
            text = made.tokenizer.decode(whole)
            assert text.startswith(made.tokenizer.decode(ids))
            continue
        if 2 in shape.rules:  # the tokenizer's end stands where the template has none
            assert ids[-1] == made.end
            text = made.tokenizer.decode(whole)
            assert text.startswith(made.tokenizer.decode(ids[:-1]))
            continue
        assert ids == whole[: len(ids)], row


def decoding_gives_the_reply(shape: Shape, kind: str) -> None:
    made: Any = family(shape, kind)
    for row, example in zip(ROWS, made.encode_all(ROWS), strict=True):
        assert example.reply_ids[-1] == made.end
        text = made.tokenizer.decode(example.reply_ids[:-1], skip_special_tokens=True)
        lead = made.lead if shape.template else ""
        reply = row.reply.strip() if shape.trims else row.reply
        assert text.lstrip().removeprefix(lead).strip() == reply.strip(), row
        assert reply in text, row
        assert made.said(example.reply_ids, [made.end]) == reply.strip()


def text_is_never_special(shape: Shape, kind: str) -> None:
    made: Any = family(shape, kind)
    control = made.text.control_ids
    for token in sorted(made.text.control - shape.cuts):
        forged = f"a {token} b{token}"
        plain = said((U, "q"), (A, "r"), (U, "s"), reply="t", system="y")
        typed = said((U, forged), (A, forged), (U, forged), reply=forged, system=forged)
        one, other = made.encode_all([plain, typed])
        for ours, theirs in (
            (one.history_ids, other.history_ids),
            (one.reply_ids, other.reply_ids),
        ):
            assert [i for i in theirs if i in control] == [i for i in ours if i in control], token
        assert token in made.tokenizer.decode(other.reply_ids[:-1])


def the_oldest_text_goes_first(shape: Shape, kind: str) -> None:
    words = [f"w{n}" for n in range(40)]
    row = said((U, "old one"), (A, "old two"), (U, "old three"), (A, "old four"),
               (U, " ".join(words)), system="be brief")  # fmt: skip
    made: Any = family(shape, kind)
    (whole,) = made.prompts([row])
    start = whole.ids[:1] if whole.ids[0] in made.text.control_ids else []
    for limit in range(len(whole.ids), 0, -1):
        small = replace(made, max_history_tokens=limit)
        try:
            (prompt,) = small.prompts([row])
        except DataError as error:
            refusal = str(error)
            break
        text = made.tokenizer.decode(prompt.ids)
        assert len(prompt.ids) <= limit
        assert prompt.cut == len(whole.ids) - len(prompt.ids)
        assert prompt.ids[: len(start)] == start
        assert "be brief" in text
        assert "9" in text.rpartition("w")[2]
        for older, newer in (("old one", "old two"), ("old two", "old four"), ("old four", "w0 ")):
            assert older not in text or newer in text
    else:
        raise AssertionError("no limit was too small")
    assert f"max_history_tokens is {limit}" in refusal
    assert limit < len(whole.ids) // 2


def generation_stops_at_every_end(shape: Shape, kind: str) -> None:
    made = family(shape, kind)
    words = made.tokenizer
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(words)).eval()
    torch.nn.init.zeros_(model.lm_head.weight)  # all tokens alike
    model.generation_config = GenerationConfig(eos_token_id=[7, 9])
    stops = declared_stops(model, made)
    assert {7, 9, made.end, words.eos_token_id} <= set(stops)
    for stop in stops:
        ids = [20, stop, 21]
        assert made.said(ids, stops) == made.said([20], stops)


def ids_beyond_are_an_error(shape: Shape, kind: str) -> None:
    """The end of a turn beyond the embedding, and a word that somebody added to the tokenizer."""
    words = tokenizer(shape, kind)
    words.add_tokens(["goose"])
    row = said((U, "a goose"), reply="no goose")
    for size in (len(words) - 1, words.eos_token_id):
        told = ""
        try:
            format_for(config(words, vocab_size=size), words).encode(row)
        except ModelError as error:
            told = str(error)
        assert f"has {size} rows; call model.resize_token_embeddings" in told


def the_date_is_fixed(shape: Shape, kind: str) -> None:
    import datetime
    from unittest.mock import patch

    import transformers.utils.chat_template_utils as templates

    found = []
    for day in (24, 25):

        class Day(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None, day: int = day) -> Any:
                return datetime.datetime(2026, 11, day)

        with patch.object(templates, "datetime", Day):
            found.append([e.history_ids for e in family(shape, kind).encode_all(ROWS)])
    assert found[0] == found[1]
    if shape.template and "strftime" in shape.template:
        text = family(shape, kind).tokenizer.decode(found[0][0])
        assert "01 Jan 2025" in text


INVARIANTS: dict[str, Callable[[Shape, str], None]] = {
    "1 prompt": prompt_is_the_templates,
    "2 prefix": target_is_what_the_template_adds,
    "3 reply": decoding_gives_the_reply,
    "4 special": text_is_never_special,
    "5 cut": the_oldest_text_goes_first,
    "6 stop": generation_stops_at_every_end,
    "7 ids": ids_beyond_are_an_error,
    "8 date": the_date_is_fixed,
}
WITHOUT_TEMPLATE = {"3 reply", "4 special", "6 stop", "7 ids"}


def applies(name: str, invariant: str) -> bool:
    return SHAPES[name].template is not None or invariant in WITHOUT_TEMPLATE


def main() -> None:
    """The table, in Markdown."""
    failed = 0
    print("| shape | " + " | ".join(INVARIANTS) + " |")
    print("|---" * (len(INVARIANTS) + 1) + "|")
    for name, shape in SHAPES.items():
        cells = []
        for invariant, holds in INVARIANTS.items():
            if not applies(name, invariant):
                cells.append("")
                continue
            try:
                for kind in ("bytes", "words"):
                    holds(shape, kind)
                cells.append("by rule" if int(invariant[0]) in shape.rules else "holds")
            except AssertionError:
                cells.append("**fails**")
                failed += 1
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
