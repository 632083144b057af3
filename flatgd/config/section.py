"""What the sections of a recipe have in common: strictness, and how paths and models are named."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from flatgd.errors import nearest

PACKAGE = Path(__file__).parent.parent
SHIPPED = "demo:"
MOST_TOKENS = 1_000_000
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that Linux takes
_SECRET = re.compile(r"(token|api_?key|secret|passw(or)?d|credentials?)s?$", re.IGNORECASE)


def resolve_path(value: Any, info: Any) -> Any:
    """`demo:NAME` is a file that ships with flatgd; a relative path starts at the recipe."""
    if not isinstance(value, str):
        return value
    if value.startswith(SHIPPED):
        return shipped(value)
    folder = (info.context or {}).get("folder", Path())
    try:
        own = Path(_usable(value)).expanduser()
    except RuntimeError:
        user = Path(value).parts[0]
        raise ValueError(f"there is no home folder {user}; write the whole path") from None
    return Path(_usable(os.path.normpath(folder / own)))


def shipped_recipe(name: str) -> Path:
    """The path of a recipe that ships with flatgd: in the wheel, or in the repository.

    Raises ValueError for one that does not.
    """
    folder = next(f for f in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if f.is_dir())
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"no recipe {name!r}{nearest(name, names)}; there are {', '.join(names)}")
    return folder / f"{name}.yaml"


def shipped(name: str) -> Path:
    """The path of `demo:NAME`, which ships with flatgd."""
    return PACKAGE / "demo" / _usable(name.removeprefix(SHIPPED))


def _usable(path: str) -> str:
    """The path, if a file system takes it; ValueError otherwise."""
    try:
        name = path.encode()
    except UnicodeEncodeError:
        raise ValueError("the path is not valid text") from None
    if b"\0" in name:
        raise ValueError("a path cannot hold a NUL character")
    if len(name) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in name.split(b"/")):
        raise ValueError(
            f"the path is too long; names have at most {LONGEST_NAME} bytes, paths {LONGEST_PATH:,}"
        )
    return path


LocalPath = Annotated[Path, BeforeValidator(resolve_path)]


def model_name(value: Any, info: Any) -> Any:
    """A folder, by its whole path, if there is one; else the name of a model on the hub."""
    if isinstance(value, str) and not value.startswith(SHIPPED):
        local = resolve_path(value, info)
        is_path = value.startswith((".", "/", "~"))
        return os.path.abspath(local) if is_path or local.is_dir() else value
    return str(resolve_path(value, info)) if isinstance(value, str) else value


ModelName = Annotated[str, BeforeValidator(model_name)]


def about(unit: str = "", values: str = "") -> dict[str, Any]:
    """What pydantic has no word for: a field's unit, or a range that a validator checks."""
    return {name: text for name, text in (("unit", unit), ("values", values)) if text}


TOKENS = about("tokens")


class Section(BaseModel):
    """A mapping in a recipe. Unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def secrets_in(fields: Mapping[str, Any], place: str) -> Iterator[str]:
    """The keys, at any depth, that are named like a token, a password or an API key."""
    for key, value in fields.items():
        inner = f"{place}.{key}"
        if _SECRET.search(str(key)) and value is not None:
            yield inner
        elif isinstance(value, Mapping):
            yield from secrets_in(value, inner)
