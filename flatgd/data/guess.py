"""What the columns and labels of an unknown table probably mean, said aloud and never used unasked.

A guess is printed by `flatgd data stats FILE` and written into a recipe by `flatgd init`, where its
owner reads it. Raises DataError where the names and values leave a choice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from flatgd.config.columns import KEYS
from flatgd.config.labels import plain_value
from flatgd.errors import DataError, Problem
from flatgd.io.any_file import parse_any

# Names that columns have in practice, the likeliest first
REPLY = ("completion", "response", "reply", "answer", "output", "model_output", "bot", "text")
PROMPT = ("prompt", "question", "instruction", "input", "user_input", "query", "context", "history")
LABEL = (
    *("label", "is_safe", "safe", "is_toxic", "toxic", "toxicity", "harmful", "is_harmful"),
    *("unsafe", "hate", "offensive", "class", "is_response_safe", "response_label"),
)
GOOD_NAMES = ("safe", "is_safe", "is_response_safe", "ok", "acceptable")
BAD_NAMES = (
    *("toxic", "is_toxic", "toxicity", "unsafe", "harmful", "is_harmful", "hate", "offensive"),
)
TRUE, FALSE = ("true", "yes", "y", "1", "t"), ("false", "no", "n", "0", "f")
SAFE = (
    *("safe", "ok", "good", "clean", "neutral", "neither", "none", "normal", "benign", "unharmful"),
    *("non-toxic", "nontoxic", "not toxic", "non_toxic", "acceptable", "appropriate", "harmless"),
)
TOXIC = (
    *("unsafe", "toxic", "bad", "hate", "offensive", "harmful", "abusive", "inappropriate"),
    *("unacceptable", "hateful", "offensive_language", "hate_speech"),
)
MOST_LABELS = 12  # more different values are no label


class Guess(NamedTuple):
    """Fields of a source, and what was seen: `reasons` says why, one line each."""

    columns: dict[str, str]
    safe_values: list[str]
    toxic_values: list[str]
    counts: dict[str, int]
    reasons: list[str]

    def fields(self) -> dict[str, Any]:
        """The fields as a source has them; those that are not needed are left out."""
        found: dict[str, Any] = {}
        if any(ours != theirs for ours, theirs in self.columns.items()):
            found["columns"] = dict(self.columns)
        if self.safe_values:
            found |= {"safe_values": self.safe_values, "toxic_values": self.toxic_values}
        return found

    def as_yaml(self, path: str) -> str:
        """The source as a line of a recipe."""
        source = {"name": Path(path).name.partition(".")[0], "path": path, **self.fields()}
        text = yaml.safe_dump(source, default_flow_style=True, sort_keys=False, width=10_000)
        return f"- {text.strip()}"


def guess_file(path: Path) -> Guess | None:
    """What a table means; None where it needs no guess, because its keys are ours already.

    Raises DataError where it cannot be read, or where the guess is open.
    """
    rows = [row for _, row in parse_any(path) if isinstance(row, dict)]
    try:
        return guess(rows)
    except ValueError as error:
        raise DataError([Problem(str(path), 0, str(error))]) from None


def guess(rows: Sequence[Mapping[str, Any]]) -> Guess | None:
    """`guess_file` for rows. ValueError where the guess is open."""
    names = list(dict.fromkeys(name for row in rows[:100] for name in row))
    if not rows or (_is_ours(names) and _has_plain_labels(rows)):
        return None
    if not any(isinstance(row.get(name), str) for row in rows[:100] for name in names):
        raise ValueError("no column holds text; the keys are " + ", ".join(map(repr, names)))
    label = _label_column(names, rows)
    reply = _column(names, REPLY, "the reply (completion)", taken=(label,))
    prompt = _column(names, PROMPT, "", taken=(label, reply), is_needed=False)
    columns = {"prompt": prompt} if prompt else {}
    columns |= {"completion": reply, "label": label}
    counts = _counts(rows, label)
    safe, toxic, why = _values(label, counts)
    reasons = [f"{theirs!r} is read as {ours}" for ours, theirs in columns.items()]
    unread = [name for name in names if name not in columns.values()]
    if unread:
        reasons.append(f"not read: {', '.join(map(repr, unread))}")
    return Guess(columns, safe, toxic, counts, [*reasons, why])


def _is_ours(names: Sequence[str]) -> bool:
    keys = set(names)
    has_reply = bool(keys & {"completion", "messages", "conversations", "turns", "chosen"})
    return has_reply and keys <= set(KEYS) and bool(keys & {"label", "chosen"})


def _has_plain_labels(rows: Sequence[Mapping[str, Any]]) -> bool:
    return _counts(rows, "label").keys() <= {"true", "false"}


def _counts(rows: Sequence[Mapping[str, Any]], column: str) -> dict[str, int]:
    """How often each label occurs, in one spelling."""
    values = (row.get(column) for row in rows)
    plain = (plain_value(v) for v in values if not isinstance(v, dict | list))
    return dict(Counter(value for value in plain if value is not None))


def _plain_name(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _column(
    names: Sequence[str],
    likely: Sequence[str],
    what: str,
    taken: Sequence[str | None] = (),
    is_needed: bool = True,
) -> str:
    """The column with the likeliest name."""
    by_name = {_plain_name(name): name for name in names if name not in taken}
    for wanted in likely:
        if wanted in by_name:
            return by_name[wanted]
    if is_needed:
        key = {"the reply (completion)": "completion"}.get(what, "label")
        raise ValueError(
            f"no column looks like {what}; the columns are {', '.join(map(repr, names))}. Name it "
            f"in the source, as columns: {{{key}: {names[0]}}}"
        )
    return ""


def _label_column(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    fitting = [n for n in names if 2 <= len(_counts(rows, n)) <= MOST_LABELS]
    return _column(fitting or names, LABEL, "a label with two or more values")


def _values(label: str, counts: Mapping[str, int]) -> tuple[list[str], list[str], str]:
    """(safe values, toxic values, why)."""
    values, name = list(counts), _plain_name(label)
    if set(values) <= {*TRUE, *FALSE}:
        truths = [v for v in values if v in TRUE]
        others = [v for v in values if v in FALSE]
        if name in GOOD_NAMES or (name == "label" and set(values) <= {"true", "false"}):
            return truths, others, f"{_shown(truths)} in {label!r} is read as safe"
        if name in BAD_NAMES:
            return others, truths, f"{_shown(truths)} in {label!r} is read as toxic"
        raise ValueError(
            f"the labels in {label!r} are {_counted(counts)}, and its name does not say which are "
            "safe. Say so in the source, as safe_values: [...] and toxic_values: [...]"
        )
    safe = [value for value in values if value in SAFE]
    toxic = [value for value in values if value in TOXIC]
    if open_ := [value for value in values if value not in (*safe, *toxic)]:
        raise ValueError(
            f"the labels in {label!r} are {_counted(counts)}; {_shown(open_)} may mean safe or "
            "toxic. Say so in the source, as safe_values: [...] and toxic_values: [...]"
        )
    if not safe or not toxic:
        raise ValueError(f"the labels in {label!r} are {_counted(counts)}: one kind alone")
    return safe, toxic, f"{_shown(safe)} is read as safe, {_shown(toxic)} as toxic"


def _shown(values: Sequence[str]) -> str:
    return " and ".join(f"{value!r:.40}" for value in values)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{value!r:.40} ({count:,})" for value, count in counts.items())
