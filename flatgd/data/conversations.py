"""Reads one row of a user's file, in any published form, as system message, history and reply.

Roles and text are unchanged: consecutive turns of one role, empty turns and an opening assistant
turn are kept. Plain strings have no roles. Their roles alternate, and the last string of a history
is the turn that the reply answers. Text parts of one message are joined by a space, and system
messages before the first turn by an empty line. What a Dialogue cannot represent is an error:
tools, content other than text, a system message after the first turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from flatgd.config.columns import PAIR, TURNS
from flatgd.dialogue import Role, Turn
from flatgd.io.records import checked_text, text_field

AnyRole = Literal["user", "assistant", "system"]
FORMS = (
    "'messages', 'conversations' or 'turns', 'prompt' with 'completion', 'instruction' with "
    "'output', or 'chosen' with 'rejected'"
)

_SPOKEN: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "person", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "bot", "gpt", "model", "chatgpt", "chatbot", "ai", "agent", "llm", "bing"),
        "assistant",
    ),
}
ROLES: dict[str, AnyRole] = {
    **_SPOKEN,
    "system": "system",
    "developer": "system",
}
TOOLS = (
    "tool",
    "tools",
    "function",
    "function_call",
    "function_response",
    "tool_call",
    "tool_calls",
    "tool_response",
    "observation",
    "ipython",
)
THINKING = ("thinking", "reasoning", "reasoning_content")
_MESSAGE_KEYS = ("prompt", "completion", *TURNS, *PAIR)


class Conversation(NamedTuple):
    """System message, history and reply of one row.

    The history holds plain strings if the row gives no roles.
    """

    system: str
    history: tuple[Turn, ...] | tuple[str, ...]
    reply: str


class _RawTurn(NamedTuple):
    """A turn of a row. `role` is None if the row gives none."""

    role: AnyRole | None
    text: str


def to_standard_keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the keys of other published forms to prompt, completion, chosen, rejected and label.

    LLaMA-Factory has instruction, input, output, history (pairs), system, and kto_tag as label.
    OpenAI's preferences have input.messages, preferred_output and non_preferred_output.
    UltraFeedback repeats the chosen conversation as messages. ValueError for a mixture of forms.
    """
    row = dict(row)
    if "preferred_output" in row:
        given = row.pop("input", None)
        if not isinstance(given, Mapping) or "messages" not in given:
            raise ValueError("'input' must hold 'messages' together with 'preferred_output'")
        _refuse_tools(given)
        _refuse_together(row, "preferred_output", ("prompt", "completion", *TURNS, *PAIR))
        row["prompt"] = given["messages"]
        row["chosen"] = row.pop("preferred_output")
        row["rejected"] = row.pop("non_preferred_output", None)
    if "instruction" in row:
        _refuse_together(row, "instruction", ("prompt", "completion", *TURNS))
        row["prompt"] = _alpaca_prompt(row)
        if "output" in row:
            row["completion"] = row.pop("output")
    if (
        "messages" in row
        and "chosen" in row
        and ("prompt" in row or _is_conversation(row["chosen"]))
    ):
        del row["messages"]
    if "kto_tag" in row:
        _refuse_together(row, "kto_tag", ("label",))
        row["label"] = row.pop("kto_tag")
    return row


def has_zero_weight(reply: Any) -> bool:
    """Whether a reply, or the last message of a conversation, has OpenAI's `weight: 0`.

    Such a message must not be learned from.
    """
    last = reply[-1] if isinstance(reply, list) and reply else reply
    return isinstance(last, Mapping) and last.get("weight") == 0


def has_thinking(row: Mapping[str, Any]) -> bool:
    """Whether a message of a row holds reasoning beside its content, which is not read."""
    values = [row[key] for key in _MESSAGE_KEYS if key in row and type(row[key]) is not str]
    messages = (m for value in values for m in (value if isinstance(value, list) else [value]))
    return any(m.get(key) for m in messages if isinstance(m, Mapping) for key in THINKING)


def _refuse_together(row: Mapping[str, Any], key: str, others: Sequence[str]) -> None:
    if clash := [other for other in others if other in row]:
        raise ValueError(f"{clash[0]!r} together with {key!r}; keep only one of them")


def _refuse_tools(row: Mapping[str, Any]) -> None:
    if row.get("tools") not in (None, "", "[]", []):
        raise ValueError("'tools' are not supported; use rows without tools")


def _is_conversation(value: Any) -> bool:
    """Whether a reply is a conversation of more than one turn."""
    return isinstance(value, list) and len(value) > 1


def _alpaca_prompt(row: dict[str, Any]) -> list[Any]:
    question, more = row.pop("instruction"), row.pop("input", None) or ""
    if not isinstance(question, str) or not isinstance(more, str):
        raise ValueError("'instruction' and 'input' must be text")
    turns = []
    for pair in row.pop("history", None) or []:
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError("'history' must be a list of [instruction, response] pairs")
        turns += pair
    return [*turns, "\n".join(part for part in (question, more) if part.strip())]


def read_conversation(row: Mapping[str, Any], roles: Mapping[str, str], side: Role) -> Conversation:
    """The conversation of a row with one reply, whose role is `side`.

    `roles` maps the user's own role names to user, assistant or system.
    """
    if forms := [key for key in TURNS if key in row]:
        if len(forms) > 1 or "prompt" in row or "completion" in row:
            raise ValueError(f"{forms[0]!r} holds prompt and reply; remove the other form")
        return _ending_in_reply(
            _read_turns(row[forms[0]], forms[0], roles), forms[0], _read_system(row), side
        )
    return _prompt_with_reply(row, "completion", roles, side)


def read_pair(
    row: Mapping[str, Any], roles: Mapping[str, str], side: Role
) -> tuple[Conversation, Conversation]:
    """The two conversations of a row with `chosen` and `rejected`."""
    one, other = (_prompt_with_reply(row, key, roles, side) for key in PAIR)
    return one, other


def _prompt_with_reply(
    row: Mapping[str, Any], key: str, roles: Mapping[str, str], side: Role
) -> Conversation:
    """The row's prompt with `row[key]` as its reply.

    The reply is text, a message, or a conversation that may repeat the prompt.
    """
    prompt = _read_prompt(row, roles)
    value = row[key]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        if isinstance(value, str) and value.startswith("\n\nHuman:"):
            raise ValueError(f"{key!r} is an HH-RLHF transcript; read this file with `format: hh`")
        return _build(prompt, text_field(row, key), _read_system(row))
    turns = _read_turns(value, key, roles)
    return _ending_in_reply(_prompt_and_reply(prompt, turns, key), key, _read_system(row), side)


def _prompt_and_reply(prompt: list[_RawTurn], turns: list[_RawTurn], key: str) -> list[_RawTurn]:
    """Join a prompt and a reply that may repeat the prompt.

    A conversation that repeats the prompt, at its beginning or just before the reply, replaces the
    prompt, except for the prompt's system messages.
    """
    if not prompt or len(turns) == 1:
        return [*prompt, *turns]
    spoken = [turn.text.strip() for turn in prompt if turn.role != "system"]
    before = [turn.text.strip() for turn in turns[:-1] if turn.role != "system"]
    if spoken not in (before[: len(spoken)], before[len(before) - len(spoken) :]):
        raise ValueError(
            f"{key!r} must be one reply, or a conversation that holds the prompt; it has "
            f"{len(turns)} turns and neither begins nor ends with the prompt"
        )
    return [turn for turn in prompt if turn.role == "system" and turn not in turns] + turns


def _read_prompt(row: Mapping[str, Any], roles: Mapping[str, str]) -> list[_RawTurn]:
    """The turns before the reply, also from LLaMA-Factory's ranked conversations."""
    forms = [key for key in ("prompt", *TURNS) if key in row]
    if len(forms) > 1:
        raise ValueError(f"{forms[1]!r} together with {forms[0]!r}; keep only one of them")
    if not forms or row[forms[0]] == []:
        return []
    if isinstance(row[forms[0]], str):
        return [_RawTurn(None, text_field(row, forms[0]))]
    if not isinstance(row[forms[0]], list):
        raise ValueError(f"{forms[0]!r} must be text or a list of turns, oldest first")
    return _read_turns(row[forms[0]], forms[0], roles)


def _read_system(row: Mapping[str, Any]) -> str:
    _refuse_tools(row)
    system = row.get("system")
    if system is None:
        return ""
    if not isinstance(system, str):
        raise ValueError(f"'system' must be text, got {type(system).__name__}")
    return checked_text(system)


def _ending_in_reply(turns: Sequence[_RawTurn], key: str, system: str, side: Role) -> Conversation:
    """Build a conversation whose last turn is the reply."""
    *history, last = turns
    if last.role not in (side, None):
        raise ValueError(
            f"the last turn of {key!r} must be the {side}'s, got a message of the {last.role}"
        )
    if not last.text.strip():
        raise ValueError(f"the last turn of {key!r}, the reply, is empty")
    return _build(history, last.text, system)


def _build(history: Sequence[_RawTurn], reply: str, system: str) -> Conversation:
    if not system and all(turn.role is None for turn in history):
        return Conversation("", tuple(turn.text for turn in history), reply)
    opening = next((n for n, t in enumerate(history) if t.role != "system"), len(history))
    spoken = history[opening:]
    messages = [system, *(turn.text for turn in history[:opening])]
    joined = "\n\n".join(dict.fromkeys(text for text in messages if text.strip()))
    if all(turn.role is None for turn in spoken):
        return Conversation(joined, tuple(turn.text for turn in spoken), reply)
    turns = []
    for turn in spoken:
        if turn.role is None:
            raise ValueError("some turns have a role and some do not; give every turn a role")
        if turn.role == "system":
            raise ValueError(
                "a system message after the first turn; it is supported before the first turn only"
            )
        turns.append(Turn(turn.role, turn.text))
    return Conversation(joined, tuple(turns), reply)


def _read_turns(turns: Any, key: str, roles: Mapping[str, str]) -> list[_RawTurn]:
    if not isinstance(turns, list):
        raise ValueError(f"{key!r} must be a list of turns, oldest first")
    if not turns:
        raise ValueError(f"{key!r} is an empty list; expected turns, oldest first")
    return [_read_turn(item, key, roles) for item in turns]


def _read_turn(item: Any, key: str, roles: Mapping[str, str]) -> _RawTurn:
    """Read a turn: plain text, an OpenAI message or a ShareGPT message."""
    if isinstance(item, str):
        return _RawTurn(None, checked_text(item))
    if not isinstance(item, dict):
        raise ValueError(f"a turn of {key!r} must be text or a message, got {type(item).__name__}")
    if item.get("tool_calls") or item.get("function_call"):
        raise ValueError(f"a message of {key!r} calls a tool; tool calls are not supported")
    role = _read_role(_first_value(item, "role", "from"), key, roles)
    text = _first_value(item, "content", "value", "text")
    if isinstance(text, list):  # content in parts, as [{"type": "text", "text": "hi"}]
        text = " ".join(_text_of_part(part, key) for part in text)
    if not isinstance(text, str):
        kind = "none" if text is None else type(text).__name__
        raise ValueError(f"a message of {key!r} must have text as 'content', got {kind}")
    return _RawTurn(role, checked_text(text))


def _first_value(item: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these keys that is present and not null."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def _text_of_part(part: Any, key: str) -> str:
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "input_text"):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"a message of {key!r} holds {kind!r}; only text is supported")
    if not isinstance(text := part.get("text"), str):
        raise ValueError(
            f"a text part of a message of {key!r} must hold text, got {type(text).__name__}"
        )
    return text


def _read_role(name: Any, key: str, roles: Mapping[str, str]) -> AnyRole:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"role {name!r:.40} in {key!r}; a message needs 'role' (or 'from')")
    plain = name.strip().casefold()
    for own, role in roles.items():
        if own.strip().casefold() == plain:
            return role  # type: ignore[return-value]
    if plain in ROLES:
        return ROLES[plain]
    if plain in TOOLS:
        raise ValueError(f"role {name!r} in {key!r}: tool turns are not supported")
    raise ValueError(
        f"unknown role {name!r:.40} in {key!r}; name it in the recipe's source, as "
        f"roles: {{{name:.40}: user}} (or assistant, or system). Known roles: {', '.join(ROLES)}"
    )
