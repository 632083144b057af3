"""What the columns and labels of an unknown table probably mean, said aloud and never used unasked.

A guess is printed by `flatgd data stats FILE` and written into a recipe by `flatgd init`, where its
owner reads it. Where names and values leave a choice, nothing is guessed.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flatgd.config.columns import KEYS, PAIR, TURNS
from flatgd.config.labels import counted, plain_value
from flatgd.data.conversations import to_standard_keys
from flatgd.errors import DataError, Problem
from flatgd.io.any_file import parse_any

REPLY = ("completion", "response", "reply", "answer", "output", "model_output", "bot", "text")
PROMPT = ("prompt", "question", "instruction", "input", "user_input", "query", "context", "history")
OPTIONAL = ("conversation", "speaker", "source", "system")  # ours, read where they are
GOOD = ("safe", "is_safe", "is_response_safe", "acceptable")  # yes means safe
BAD = (  # yes means toxic
    *("toxic", "is_toxic", "toxicity", "unsafe", "is_unsafe", "harmful", "is_harmful", "flagged"),
    *("hate", "offensive"),
)
LABEL = ("label", "class", "response_label", *GOOD, *BAD)
YES_NO = {"true": "false", "yes": "no", "y": "n", "1": "0", "t": "f"}
SAFE = (
    *("safe", "good", "clean", "neutral", "neither", "benign", "unharmful", "harmless"),
    *("non-toxic", "nontoxic", "not toxic", "non_toxic", "acceptable", "appropriate"),
)
TOXIC = (
    *("unsafe", "toxic", "bad", "hate", "offensive", "harmful", "abusive", "inappropriate"),
    *("unacceptable", "hateful", "offensive_language", "hate_speech"),
)
MOST_LABELS = 12  # a column with more different values is no label
LISTS = "safe_values: [...] and toxic_values: [...]"


class Guess(NamedTuple):
    """Fields of a source; `reasons` says why, one line each. `columns` is empty where the table has
    our own keys."""

    columns: dict[str, str]
    safe_values: list[str]
    toxic_values: list[str]
    reasons: list[str]

    def fields(self) -> dict[str, Any]:
        """The fields as a source has them."""
        values = {"safe_values": self.safe_values, "toxic_values": self.toxic_values}
        return ({"columns": dict(self.columns)} if self.columns else {}) | values

    def as_yaml(self, path: str) -> str:
        """The source as a line of a recipe."""
        name = re.sub(r"[^\w. +-]", "_", Path(path).name.partition(".")[0]) or "mine"
        source = {"name": name, "path": path, **self.fields()}
        text = yaml.safe_dump(
            source, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
        )
        return f"- {text.strip()}"


def guess_file(path: Path) -> Guess | None:
    """What a table means; None where it is read as it is.

    Raises DataError where it cannot be read, or where the guess is open.
    """
    rows = [row for _, row in parse_any(path) if isinstance(row, dict)]
    try:
        return guess(rows)
    except ValueError as error:
        raise DataError([Problem(str(path), 0, str(error))]) from None


def guess(rows: Sequence[Mapping[str, Any]]) -> Guess | None:
    """`guess_file` for rows. ValueError where the guess is open."""
    if not rows:
        return None
    known = _standard(rows)
    if known is not None:
        counts = _counts(known, "label")
        if counts.keys() <= {"true", "false"}:
            return None
        return Guess({}, *_values("label", counts))
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    label = _only(_labels(names, rows), "the label", "label", names)
    texts = [n for n in names if n != label and _is_text(n, rows)]
    reply = _only([n for n in texts if _plain(n) in REPLY], "the reply", "completion", names)
    prompts = [n for n in texts if n != reply and _plain(n) in PROMPT]
    columns = {"prompt": _only(prompts, "the prompt", "prompt", names)} if prompts else {}
    columns |= {"completion": reply, "label": label}
    columns |= {name: name for name in OPTIONAL if name in names and name not in columns.values()}
    safe, toxic, why = _values(label, _counts(rows, label))
    reasons = [f"{theirs!r} is read as {ours}" for ours, theirs in columns.items()]
    if unread := [name for name in names if name not in columns.values()]:
        reasons.append(f"not read: {', '.join(map(repr, unread))}")
    return Guess(columns, safe, toxic, [*reasons, *why])


def _standard(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """The rows with our keys, if they are of a form that is read without a guess."""
    try:
        known = [to_standard_keys(row) for row in rows]
    except ValueError:
        return None
    keys = {key for row in known[:100] for key in row}
    has_reply = not keys.isdisjoint(("completion", *TURNS, *PAIR))
    return known if has_reply and keys <= set(KEYS) else None


def _labels(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Columns with the name of a label and few values."""
    named = [name for name in names if _plain(name) in LABEL]
    return [name for name in named if 0 < len(_counts(rows, name)) <= MOST_LABELS]


def _counts(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, int]:
    """How often each label occurs, in one spelling. Empty for a column that holds other things."""
    try:
        plain = [plain_value(row.get(column)) for row in rows]
    except ValueError:  # dates, bytes, objects
        return {}
    return dict(Counter(value for value in plain if value is not None))


def _is_text(name: str, rows: Sequence[Mapping[str, Any]]) -> bool:
    return any(isinstance(row.get(name), str) for row in rows[:100])


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _only(found: Sequence[str], what: str, key: str, names: Sequence[str]) -> str:
    """The one column that fits."""
    if len(found) == 1:
        return found[0]
    shown = ", ".join(map(repr, found or names))
    reason = "all look like" if found else "are the columns, and none looks like"
    raise ValueError(f"{shown} {reason} {what}. Say which, as columns: {{{key}: NAME}}")


def _values(label: str, counts: Mapping[str, int]) -> tuple[list[str], list[str], list[str]]:
    """(safe values, toxic values, why)."""
    values, name = list(counts), _plain(label)
    told = f"the labels in {label!r} are {counted(counts.items())}"
    if pairs := [(yes, no) for yes, no in YES_NO.items() if set(values) <= {yes, no}]:
        yes, no = pairs[0]
        if name in GOOD or (name == "label" and yes == "true"):
            return [yes], [no], [f"{yes!r} in {label!r} is read as safe, {no!r} as toxic"]
        if name in BAD:
            return [no], [yes], [f"{yes!r} in {label!r} is read as toxic, {no!r} as safe"]
        raise ValueError(f"{told}, and its name does not say which are safe. Say so, as {LISTS}")
    safe = [value for value in values if value in SAFE]
    toxic = [value for value in values if value in TOXIC]
    if unknown := [value for value in values if value not in (*safe, *toxic)]:
        shown = " and ".join(f"{value!r:.40}" for value in unknown[:5])
        raise ValueError(f"{told}; {shown} may mean safe or toxic. Say so, as {LISTS}")
    if not safe or not toxic:
        raise ValueError(f"{told}: one kind alone. Name the other too, as {LISTS}")
    why = [f"{value!r} is read as safe" for value in safe]
    return safe, toxic, [*why, *(f"{value!r} is read as toxic" for value in toxic)]
