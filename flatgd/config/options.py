"""An option: one sentence, a range and a unit, as data on the field that holds it.

Dataclasses (FlatGDConfig, methods) carry it as `metadata=option(...)`; the sections of a recipe are
pydantic models, whose fields have the same data in pydantic's own form. Validation, `flatgd init`,
docs/options.md and `FlatGDConfig`'s help are made from it.
"""

import os
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

LARGEST_SEED = 2**32 - 1  # what numpy takes
_LIMITS = ("gt", "ge", "lt", "le")
PLAIN = {int, float, bool, str, dict, list, type(None)}  # types that are checked
_ALSO: dict[type, tuple[type, ...]] = {str: (str, os.PathLike), list: (list, tuple)}


@dataclass(frozen=True)
class Option:
    """What an option does, which values it takes, and in which unit.

    `unset` is a value that stands for "not set" and lies outside the range. `choices` are the words
    that it may be. `values` describes a range that is checked elsewhere.
    """

    summary: str
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    unset: int | None = None
    values: str = ""

    @property
    def range(self) -> str:
        """
        >>> Option("", gt=0, le=1).range, Option("", ge=1).range
        ('0 < x <= 1', '>= 1')
        """
        if self.values or self.choices:
            return self.values or ", ".join(self.choices)
        limits = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        bounds = [(sign, _number(limit)) for sign, limit in limits if limit is not None]
        if len(bounds) == 2:
            (sign, low), upper = bounds
            return f"{low} {sign.replace('>', '<')} x {' '.join(upper)}"
        return " ".join(bounds[0]) if bounds else ""

    @property
    def text(self) -> str:
        """The sentence with range and unit."""
        limits = ", ".join(part for part in (self.range, self.unit) if part)
        return f"{self.summary} ({limits})" if limits else self.summary

    def holds(self, number: Any) -> bool:
        """Whether a finite number lies in the range."""
        return (
            (self.gt is None or number > self.gt)
            and (self.ge is None or number >= self.ge)
            and (self.lt is None or number < self.lt)
            and (self.le is None or number <= self.le)
        )


def _number(value: float) -> str:
    return "2^32 - 1" if value == LARGEST_SEED else f"{value:,}"


def option(summary: str, **limits: Any) -> dict[str, Any]:
    """The metadata of a dataclass field; `limits` are the other fields of Option."""
    made = Option(summary, **limits)
    return {"help": made.text, "option": made}


def option_of(field: Any) -> Option:
    """The option of a dataclass field, or of a pydantic field; one without data has no range."""
    if isinstance(field, Field):
        found: Option = field.metadata.get("option", Option(""))
        return found if found.choices else _with_choices(found, field.type)
    limits = {
        name: getattr(limit, name)
        for limit in field.metadata
        for name in _LIMITS
        if getattr(limit, name, None) is not None
    }
    extra = field.json_schema_extra or {}
    made = Option(" ".join((field.description or "").split()), **limits, **extra)
    return _with_choices(made, field.annotation)


def _with_choices(found: Option, kind: Any) -> Option:
    words = [
        word for part in kinds_of(kind) if get_origin(part) is Literal for word in get_args(part)
    ]
    return Option(**{**found.__dict__, "choices": tuple(words)}) if words else found


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the one type.

    >>> kinds_of(float | None)
    (<class 'float'>, <class 'NoneType'>)
    """
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def value_fault(name: str, value: Any, kind: Any, found: Option) -> str | None:
    """Why `value` cannot be the option `name` of that type, or None where it can.

    Checks numbers (finite, whole where the type is int, in range), booleans, text, lists, mappings
    and words from a list. Values of other types are not looked at.
    """
    kinds = tuple(get_origin(part) or part for part in kinds_of(kind))
    if (value is None and type(None) in kinds) or (
        found.unset is not None and value == found.unset
    ):
        return None
    if found.choices:
        is_right = isinstance(value, str) and value in found.choices
    elif set(kinds) <= PLAIN:
        is_right = any(_fits(value, part) for part in kinds)
        if is_right and isinstance(value, Real) and not isinstance(value, bool):
            is_right = found.holds(value)
    else:
        return None
    return None if is_right else f"{name} must be {_expected(kinds, found)}, got {value!r:.60}"


def _fits(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind in (int, float):
        wanted = Integral if kind is int else Real
        number: Any = value
        return isinstance(value, wanted) and abs(number) < 2**63  # neither NaN nor infinity
    return isinstance(value, _ALSO.get(kind, kind))


def _expected(kinds: tuple[Any, ...], found: Option) -> str:
    """
    >>> _expected((float,), Option("", gt=0, le=1)), _expected((int, type(None)), Option("", ge=1))
    ('a number, 0 < x <= 1', 'a whole number >= 1')
    """
    if found.choices:
        return f"one of {', '.join(found.choices)}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    words |= {dict: "a mapping", list: "a list"}
    named = " or ".join(words[part] for part in kinds if part in words)
    return f"{named}, {found.range}" if " x " in found.range else f"{named} {found.range}".strip()


def default_of(field: Any) -> Any:
    """The default of a dataclass or pydantic field; MISSING where it has none."""
    if isinstance(field, Field):
        return field.default if field.default_factory is MISSING else field.default_factory()
    return MISSING if field.is_required() else field.get_default(call_default_factory=True)


def faults_of(fields: Mapping[str, Any], value_of: Callable[[str], Any]) -> Iterator[str]:
    """What is wrong with the values of dataclass fields."""
    for name, field in fields.items():
        if fault := value_fault(name, value_of(name), field.type, option_of(field)):
            yield fault
