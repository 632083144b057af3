"""Which label of a row means safe and which toxic, and which is none."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from flatgd.dialogue import normal_form

Default = Literal["safe", "toxic", "none"]
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?")
_DEFAULTS: dict[Default, bool | None] = {"safe": True, "toxic": False, "none": None}
_BOOLEANS = {"true": True, "false": False}


def plain_value(value: Any) -> str | None:
    """One text for all spellings of a label or an id: case, white space and the type of a number do
    not count. None for what is no value: null, NaN, blank text and lists. ValueError for objects.

    >>> [plain_value(value) for value in ("Toxic ", 1, 1.0, "1.0", True, float("nan"), "", ["a"])]
    ['toxic', '1', '1', '1', 'true', None, None, None]
    """
    if value is None or isinstance(value, list | tuple):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise ValueError(f"a label or an id is text or a number, got {type(value).__name__}")
    text = normal_form(str(value))
    if text in ("", "nan"):
        return None
    if not _NUMBER.fullmatch(text) or math.isinf(float(text)):
        return text
    number = float(text)
    if number.is_integer():
        return text if text.isdecimal() and not text.startswith("0") else str(int(number))
    return repr(number)


def is_blank(value: Any) -> bool:
    """Whether `plain_value` is None."""
    if isinstance(value, str) and value.isascii():
        return value.strip().lower() in ("", "nan")
    return plain_value(value) is None


@dataclass(frozen=True)
class Labels:
    """How the labels of a file are read.

    Without `safe` and `toxic`, a label is true (safe) or false (toxic). With both, any other value
    is an error. With one of them, all other values are the opposite, which `check` allows only
    where the file has two. `default` is for rows that carry no label: where it is None, a row with
    a null or blank label has none, and one that lacks the key is refused.
    """

    safe: tuple[str, ...] = ()
    toxic: tuple[str, ...] = ()
    default: Default | None = None

    def __post_init__(self) -> None:
        for name, values in (("safe_values", self.safe), ("toxic_values", self.toxic)):
            if empty := [value for value in values if plain_value(value) is None]:
                raise ValueError(f"{name}: {empty[0]!r} is no label; rows that have none: label")
        safe, toxic = self._keys
        for key in safe & toxic:
            raise ValueError(f"safe_values and toxic_values both hold {key!r}")

    @cached_property
    def _keys(self) -> tuple[set[str | None], set[str | None]]:
        return {plain_value(value) for value in self.safe}, {plain_value(v) for v in self.toxic}

    def is_safe(self, row: Mapping[str, Any], seen: dict[str, int]) -> bool | None:
        """The label of a row; `seen` counts the values of a file. ValueError for what is none."""
        if "label" not in row and self.default is None:
            raise ValueError(
                "no 'label'; true is safe, false is toxic. For a file of one kind, the source "
                "takes label: safe (or toxic, or none)"
            )
        value = row.get("label")
        key = plain_value(value)
        if key is None:
            is_list = isinstance(value, list | tuple)
            return None if is_list or self.default is None else _DEFAULTS[self.default]
        seen[key] = seen.get(key, 0) + 1
        safe, toxic = self._keys
        if safe and toxic:
            if key not in safe | toxic:
                raise ValueError(f"label {value!r:.40} is in neither safe_values nor toxic_values")
            return key in safe
        if safe or toxic:
            return key in safe if safe else key not in toxic
        if key not in _BOOLEANS:
            raise ValueError(
                f"'label' must be true (safe) or false (toxic), got {value!r:.40}. For "
                "other labels, set safe_values: [...] and toxic_values: [...] in the source"
            )
        return _BOOLEANS[key]

    def fault(self, seen: Mapping[str, int]) -> str | None:
        """Why the values of a whole file do not tell safe from toxic, where they do not: with one
        list alone, the file must have two values, one of them in the list."""
        safe, toxic = self._keys
        if bool(safe) == bool(toxic) or not seen:
            return None
        given, other = ("toxic_values", "safe_values") if toxic else ("safe_values", "toxic_values")
        if len(seen) == 2 and len(seen.keys() & (safe | toxic)) == 1:
            return None
        return (
            f"{given} alone needs a file with two labels, one of them in it; the labels are "
            f"{counted(seen.items())}. Name the others too, as {other}: [...]"
        )


def counted(values: Iterable[tuple[str, int]]) -> str:
    """The labels of a file with their numbers, ten at most."""
    told = [f"{value!r:.40} ({count:,} rows)" for value, count in values]
    return ", ".join(told[:10]) + (f" and {len(told) - 10} more" if len(told) > 10 else "")
