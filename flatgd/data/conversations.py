"""One row of a user's file as system message, history and reply, in any published form.

Roles and text are kept as they are: two turns of one role in a row, empty turns and an assistant
that opens stay. Plain strings have no roles; they alternate, and the last of a history is the
user's. What cannot be represented is an error: tools, content that is no text, a system message
after the first turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from flatgd.dialogue import Role, Turn, as_turns
from flatgd.records import checked_text, text_field

FORMS = (
    "'messages', 'conversations' or 'turns', 'prompt' with 'completion', 'instruction' with "
    "'output', or 'chosen' with 'rejected'"
)
TURNS = ("messages", "conversations", "turns")
REPLIES = ("completion", "chosen", "rejected")
ABOUT = ("system", "tools", "prompt_id", "id", "score_chosen", "score_rejected", "kto_tag")
"""Keys of published forms beside the conversation. `system` and `tools` are read, the rest not."""

_SPOKEN: dict[str, Role] = {
    **dict.fromkeys(("user", "human", "prompter", "person", "customer"), "user"),
    **dict.fromkeys(
        ("assistant", "bot", "gpt", "model", "chatgpt", "chatbot", "ai", "agent", "llm"),
        "assistant",
    ),
}
ROLES: dict[str, Literal["user", "assistant", "system"]] = {
    **_SPOKEN,
    "system": "system",
    "developer": "system",
}
TOOLS = (
    "tool",
    "function",
    "function_call",
    "tool_call",
    "tool_response",
    "observation",
    "ipython",
)
KTO_LABELS = {"true": True, "false": False}


class Conversation(NamedTuple):
    """System message, history and reply of one row."""

    system: str
    history: tuple[Turn, ...]
    reply: str


class _Said(NamedTuple):
    """A turn as read. `role` is None where the row gives none."""

    role: Literal["user", "assistant", "system"] | None
    text: str


def unified(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of another published form under the names prompt, completion, chosen, rejected.

    LLaMA-Factory: instruction, input, output, history (pairs), system, and kto_tag for a label.
    OpenAI's preferences: input.messages, preferred_output, non_preferred_output. UltraFeedback:
    messages beside chosen and rejected repeat the chosen conversation. ValueError for a mixture.
    """
    row = dict(row)
    if "preferred_output" in row:
        given = row.pop("input", None)
        if not isinstance(given, dict) or "messages" not in given:
            raise ValueError("'input' must hold 'messages' beside 'preferred_output'")
        if given.get("tools"):
            raise ValueError("'tools' are not supported; use rows without tool calls")
        row["prompt"] = given["messages"]
        row["chosen"] = row.pop("preferred_output")
        row["rejected"] = row.pop("non_preferred_output", None)
    if "instruction" in row:
        if clash := [key for key in ("prompt", "completion", *TURNS) if key in row]:
            raise ValueError(f"{clash[0]!r} beside 'instruction'; drop the one or the other")
        row["prompt"] = _alpaca_prompt(row)
        if "output" in row:
            row["completion"] = row.pop("output")
    if "chosen" in row and "messages" in row:
        del row["messages"]
    if "kto_tag" in row:
        tag = row.pop("kto_tag")
        row.setdefault("label", KTO_LABELS.get(str(tag).lower(), tag))
    return row


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


def conversation(row: Mapping[str, Any], roles: Mapping[str, str]) -> Conversation:
    """The conversation of a row with one reply. `roles` adds role names of the user's own."""
    if forms := [key for key in TURNS if key in row]:
        if len(forms) > 1 or "prompt" in row or "completion" in row:
            raise ValueError(f"{forms[0]!r} holds prompt and reply; drop the other form")
        return _whole(_read(row[forms[0]], forms[0], roles), forms[0], _system(row))
    return _answered(row, "completion", roles)


def pair(row: Mapping[str, Any], roles: Mapping[str, str]) -> tuple[Conversation, Conversation]:
    """The two conversations of a row with `chosen` and `rejected`."""
    one, other = (_answered(row, key, roles) for key in ("chosen", "rejected"))
    return one, other


def _answered(row: Mapping[str, Any], key: str, roles: Mapping[str, str]) -> Conversation:
    """`row[key]` as the reply to the prompt: text, a message, or a whole conversation, which may
    repeat the prompt."""
    prompt = _prompt(row, roles)
    value = row[key]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        if isinstance(value, str) and value.startswith("\n\nHuman:"):
            raise ValueError(f"{key!r} is an HH-RLHF transcript; read this file with format: hh")
        return _closed(prompt, text_field(row, key), _system(row))
    said = _read(value, key, roles)
    if prompt and len(said) > 1:
        said = _without_prompt(said, prompt, key)
    return _whole([*prompt, *said], key, _system(row))


def _without_prompt(said: list[_Said], prompt: list[_Said], key: str) -> list[_Said]:
    """The turns after the prompt that they repeat, with or without its system message."""
    spoken = [turn.text.strip() for turn in prompt if turn.role != "system"]
    texts = [turn.text.strip() for turn in said if turn.role != "system"]
    if texts[: len(spoken)] != spoken:
        raise ValueError(
            f"{key!r} must be one reply, or the conversation that begins with the prompt; it has "
            f"{len(said)} turns and begins otherwise"
        )
    own = [turn for turn in said if turn.role == "system" and turn not in prompt]
    return own + [turn for turn in said if turn.role != "system"][len(spoken) :]


def _prompt(row: Mapping[str, Any], roles: Mapping[str, str]) -> list[_Said]:
    for name in TURNS:  # LLaMA-Factory's ranked conversations
        if name in row:
            return _read(row[name], name, roles)
    if "prompt" not in row:
        return []
    if isinstance(row["prompt"], str):
        return [_Said("user", text_field(row, "prompt"))]
    if not isinstance(row["prompt"], list):
        raise ValueError("'prompt' must be text or a list of turns, oldest first")
    return _read(row["prompt"], "prompt", roles) if row["prompt"] else []


def _system(row: Mapping[str, Any]) -> str:
    if row.get("tools") not in (None, "", [], "[]"):
        raise ValueError("'tools' are not supported; use rows without tool calls")
    system = row.get("system")
    if system is None:
        return ""
    if not isinstance(system, str):
        raise ValueError(f"'system' must be text, got {type(system).__name__}")
    return checked_text(system)


def _whole(said: Sequence[_Said], key: str, system: str) -> Conversation:
    """A conversation whose last turn is the reply."""
    if not said or said[-1].role == "system":
        raise ValueError(f"{key!r} must end with the assistant's reply")
    *history, last = said
    if last.role == "user":
        raise ValueError(f"the last turn of {key!r} must be the assistant's, but is the user's")
    return _closed(history, text_field({"reply": last.text}, "reply"), system)


def _closed(history: Sequence[_Said], reply: str, system: str) -> Conversation:
    opening = next((n for n, t in enumerate(history) if t.role != "system"), len(history))
    spoken = history[opening:]
    if any(turn.role == "system" for turn in spoken):
        raise ValueError("a system message after the first turn; only one before it is supported")
    messages = [turn.text for turn in history[:opening] if turn.text.strip()]
    if system.strip():
        messages.insert(0, system)
    named = [turn for turn in spoken if turn.role]
    if named and len(named) < len(spoken):
        raise ValueError("some turns have a role and some have none; give every turn a role")
    turns = (
        tuple(Turn(turn.role, turn.text) for turn in spoken)  # type: ignore[arg-type]
        if named
        else as_turns(turn.text for turn in spoken)
    )
    return Conversation("\n\n".join(dict.fromkeys(messages)), turns, reply)


def _read(turns: Any, key: str, roles: Mapping[str, str]) -> list[_Said]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{key!r} must be a list of turns, oldest first")
    return [_turn(item, key, roles) for item in turns]


def _turn(item: Any, key: str, roles: Mapping[str, str]) -> _Said:
    """A turn from plain text, an OpenAI message or a ShareGPT one."""
    if isinstance(item, str):
        return _Said(None, checked_text(item))
    if not isinstance(item, dict):
        raise ValueError(f"a turn of {key!r} must be text or a message, got {type(item).__name__}")
    if item.get("tool_calls") or item.get("function_call"):
        raise ValueError(f"a message of {key!r} calls a tool; tool calls are not supported")
    role = _role(item.get("role", item.get("from")), key, roles)
    text = item["content"] if "content" in item else item.get("value", item.get("text"))
    if isinstance(text, list):  # content in parts, as [{"type": "text", "text": "hi"}]
        text = " ".join(_part(part, key) for part in text)
    if not isinstance(text, str):
        raise ValueError(f"a message of {key!r} must have text as 'content', got {text!r}")
    return _Said(role, checked_text(text))


def _part(part: Any, key: str) -> str:
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "input_text"):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"a message of {key!r} holds {kind!r}; only text is supported")
    if not isinstance(text := part.get("text"), str):
        raise ValueError(f"a text part of a message of {key!r} must hold text, got {text!r}")
    return text


def _role(name: Any, key: str, roles: Mapping[str, str]) -> Literal["user", "assistant", "system"]:
    plain = name.strip().casefold() if isinstance(name, str) else ""
    known = ROLES | {own.strip().casefold(): role for own, role in roles.items()}
    if plain in known:
        return known[plain]  # type: ignore[return-value]
    if plain in TOOLS:
        raise ValueError(f"role {name!r} in {key!r}: tool turns are not supported")
    raise ValueError(
        f"unknown role {name!r} in {key!r}; say in the recipe's source what it is, as "
        f"roles: {{{name}: user}} (or assistant, or system). Known are {', '.join(ROLES)}"
    )
