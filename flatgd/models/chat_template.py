"""Chat templates: the prompt that inference sees, and what the template adds for a reply.

    prompt   the rendered history with the template's generation prompt
    target   what the template then adds for the reply, up to its end of turn

If a template refuses a conversation, the rules below change it, and each change is a note of the
row: neighbouring turns of one role are joined by a line break; the system message goes before the
first user turn; opening assistant turns are left out. A history without turns becomes one empty
user turn. If the template does not continue its own prompt with the reply, the target is the reply
between the strings that the template writes around a probe. If it writes no control token after a
reply, the tokenizer's end-of-sequence token ends the reply.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from inspect import signature
from itertools import groupby
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from flatgd.dialogue import Turn
from flatgd.errors import ModelError
from flatgd.models.text_encoder import TextEncoder
from flatgd.runtime.time_limit import time_limit

JOINED = "turns of one role joined"
MOVED = "system message put before the first user turn"
OPENING = "opening assistant turns left out"
OTHERWISE = "reply not written after the prompt by the template"
CHANGED = "reply changed by the template"
PROBE = "Xyzzy"
MAX_SECONDS = 30.0  # for one call of the template, which takes milliseconds unless it loops
WITHOUT_TEMPLATE = 'set turn_separator: "\\n" to do without the template'
Messages = list[dict[str, str]]


STRFTIME = (
    "{%- macro strftime_now(format) -%}{{ days_by_format[format] if format in days_by_format else "
    "raise_exception('strftime_now wants a format in quotes') }}{%- endmacro %}"
)


class EndlessTemplateError(ModelError):
    """The template runs for too long; it is not tried again with a changed conversation."""


class Reply(NamedTuple):
    """What a template writes around a reply, as marked text. `end_id` is the end token;
    `is_trimmed` is whether the template strips the reply's white space."""

    lead: str
    end: str
    end_id: int
    tail: str
    is_trimmed: bool


class Rendered(NamedTuple):
    """Prompt and prompt + target as marked text, and the rules that changed the conversation."""

    prompt: str
    whole: str
    notes: tuple[str, ...]


class ChatTemplate:
    """A tokenizer's chat template. `today` (YYYY-MM-DD) is the date that it may print; `kwargs` are
    the template's own variables. Raises ModelError for a template that fails or never ends."""

    def __init__(self, encoder: TextEncoder, today: str, kwargs: Mapping[str, Any]):
        self.encoder = encoder
        self.tokenizer: PreTrainedTokenizerBase = encoder.tokenizer
        self._kwargs = {**_dated(self.tokenizer.get_chat_template(), today), **kwargs}
        # of many conversations apply_chat_template does the same, after a look at each message's
        # type that takes as long as the template itself
        own = signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys()
        kind = type(self.tokenizer).apply_chat_template
        self._renders_plainly = (
            kind is PreTrainedTokenizerBase.apply_chat_template
            and self._kwargs.keys() & own <= {"chat_template"}
        )
        self._template = {"chat_template": self.tokenizer.get_chat_template()}
        self.reply = self._probe()

    def prompts(
        self, rows: Sequence[tuple[str, Sequence[Turn]]]
    ) -> list[tuple[str, Messages, tuple[str, ...]]]:
        """(prompt, its messages, notes) of each (system message, history)."""
        marked = [self._messages(system, turns) for system, turns in rows]
        texts = self._render_all(marked, True)
        return [
            (text, messages, ())
            if text is not None and _shows_system(text, messages)
            else self._repaired(messages)
            for text, messages in zip(texts, marked, strict=True)
        ]

    def wholes(
        self, prompts: Sequence[tuple[str, Messages, tuple[str, ...]]], replies: Sequence[str]
    ) -> list[Rendered]:
        """Prompt and target of each reply."""
        marked = [self.encoder.mark(reply) for reply in replies]
        full = [
            [*messages, {"role": "assistant", "content": reply}]
            for (_, messages, _), reply in zip(prompts, marked, strict=True)
        ]
        found = []
        for (prompt, _, notes), reply, text in zip(
            prompts, marked, self._render_all(full, False), strict=True
        ):
            target, more = self._target(prompt, reply, text)
            found.append(Rendered(prompt, prompt + target, (*notes, *more)))
        return found

    def _target(self, prompt: str, reply: str, text: str | None) -> tuple[str, tuple[str, ...]]:
        lead, end, tail = self.reply.lead, self.reply.end, self.reply.tail
        after = text[len(prompt) :] if text is not None and text.startswith(prompt) else None
        if after is None or not (after.startswith(lead) and after.endswith(tail)):
            written = reply.strip() if self.reply.is_trimmed else reply
            return lead + written + end, (OTHERWISE,)
        written = after[len(lead) : len(after) - len(tail)]
        return lead + written + end, (CHANGED,) if written.strip() != reply.strip() else ()

    def _probe(self) -> Reply:
        opening = [{"role": "user", "content": "a"}]
        prompt = self._render(opening, True)
        whole, padded = (
            self._render([*opening, {"role": "assistant", "content": text}], False)
            for text in (PROBE, f" {PROBE} ")
        )
        if PROBE not in whole:
            raise ModelError(
                f"the chat template leaves out the assistant's text; {WITHOUT_TEMPLATE}"
            )
        before, _, tail = whole.rpartition(PROBE)
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        found = self.encoder.first_control(tail)
        end = tail[: found.end()] if found else str(self.tokenizer.eos_token)
        token = found[0] if found else str(self.tokenizer.eos_token)
        return Reply(lead, end, self.encoder.id_of(token), tail, whole == padded)

    def _messages(self, system: str, turns: Sequence[Turn]) -> Messages:
        said = [Turn(turn.role, self.encoder.mark(turn.text)) for turn in turns]
        opening = [{"role": "system", "content": self.encoder.mark(system)}] if system else []
        said = said or [Turn("user", "")]
        return [*opening, *({"role": turn.role, "content": turn.text} for turn in said)]

    def _render_all(self, conversations: Sequence[Messages], prompt: bool) -> list[str | None]:
        """The text of each conversation; None where the template refuses it."""
        try:
            return list(self._apply(conversations, prompt)) if conversations else []
        except EndlessTemplateError:
            raise
        except Exception:  # a stranger's template can fail in any way
            return [self._try(messages, prompt) for messages in conversations]

    def _try(self, messages: Messages, prompt: bool) -> str | None:
        try:
            return self._render(messages, prompt)
        except EndlessTemplateError:
            raise
        except ModelError:
            return None

    def _render(self, messages: Messages, prompt: bool) -> str:
        try:
            return str(self._apply(messages, prompt))
        except ModelError:
            raise
        except Exception as error:  # a stranger's template can fail in any way
            raise ModelError(
                f"the chat template refuses this conversation: {type(error).__name__}: {error}; "
                f"{WITHOUT_TEMPLATE}"
            ) from None

    def _apply(self, messages: Any, prompt: bool) -> Any:
        try:
            with time_limit(MAX_SECONDS):
                if self._renders_plainly and messages and isinstance(messages[0], list):
                    given = {**self.tokenizer.special_tokens_map, **self._template, **self._kwargs}
                    return render_jinja_template(messages, add_generation_prompt=prompt, **given)[0]
                return self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=prompt, tokenize=False, **self._kwargs
                )
        except TimeoutError:
            raise EndlessTemplateError(
                f"the chat template did not end within {MAX_SECONDS:g} seconds; {WITHOUT_TEMPLATE}"
            ) from None

    def _repaired(self, messages: Messages) -> tuple[str, Messages, tuple[str, ...]]:
        """The conversation with the fewest changes that the template accepts."""
        for tried, notes in _repairs(messages):
            text = self._try(tried, True)
            if text is not None and _shows_system(text, tried):
                return text, tried, notes
        self._render(messages, True)  # raises
        raise ModelError(
            "the chat template leaves out the system message; remove it from the data, or "
            + WITHOUT_TEMPLATE
        )


def _dated(template: str, today: str) -> dict[str, Any]:
    """The template with its own `strftime_now`, which always returns one date."""
    if "strftime_now" not in template:
        return {}
    day = date.fromisoformat(today)
    formats = re.findall(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)")""", template)
    days = {text: day.strftime(text) for pair in formats for text in pair if text}
    return {"chat_template": f"{STRFTIME}\n{template}", "days_by_format": days}


def _shows_system(text: str, messages: Messages) -> bool:
    return messages[0]["role"] != "system" or messages[0]["content"].strip() in text


Repair = Callable[[Messages], Messages]


def _joined(messages: Messages) -> Messages:
    return [
        {"role": role, "content": "\n".join(message["content"] for message in group)}
        for role, group in groupby(messages, key=lambda message: message["role"])
    ]


def _moved(messages: Messages) -> Messages:
    if messages[0]["role"] != "system":
        return messages
    system, *rest = messages
    for place, message in enumerate(rest):
        if message["role"] == "user":
            content = f"{system['content']}\n\n{message['content']}"
            return [*rest[:place], {"role": "user", "content": content}, *rest[place + 1 :]]
    return [{"role": "user", "content": system["content"]}, *rest]


def _opened_by_user(messages: Messages) -> Messages:
    opening = messages[:1] if messages[0]["role"] == "system" else []
    rest = messages[len(opening) :]
    users = [place for place, message in enumerate(rest) if message["role"] == "user"]
    return opening + (rest[users[0] :] if users else [{"role": "user", "content": ""}])


RULES: tuple[tuple[str, Repair], ...] = (
    (JOINED, _joined),
    (MOVED, _moved),
    (OPENING, _opened_by_user),
)
ORDER = ((0,), (1,), (0, 1), (2,), (0, 2), (1, 2), (0, 1, 2))  # fewest changes first


def _repairs(messages: Messages) -> Iterator[tuple[Messages, tuple[str, ...]]]:
    for places in ORDER:
        tried = messages
        notes: list[str] = []
        for place in reversed(places):  # what opens first, then the system message, then joins
            note, repair = RULES[place]
            changed = repair(tried)
            if changed != tried:
                tried, notes = changed, [note, *notes]
        if len(notes) == len(places):
            yield tried, tuple(notes)
