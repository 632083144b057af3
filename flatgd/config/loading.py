"""Recipes as files: read with overrides, validated with all faults at once; the template."""

import json
import math
import os
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from flatgd.config.recipe import PACKAGE, Recipe, Section
from flatgd.errors import RecipeError, nearest

Checked = TypeVar("Checked", bound=Section)
MOST = 10_000  # values in a recipe
NOT_SET = "not set"
_SECRET = re.compile(
    r"(^|hub_|access_|auth_|api_|hf_)token$|password|secret|api_?key", re.IGNORECASE
)
_NUMBER = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")


def _parsed(text: str) -> Any:
    """YAML whose aliases do not make it large: a few lines of them can stand for any number of
    values, or for one within itself. Raises RecipeError then, or where it is nested too deep."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _size(node, {}) > MOST:
            raise RecipeError(f"more than {MOST:,} values, counted as its aliases repeat them")
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise RecipeError("nested too deep") from None


def _size(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for; no end where it stands within itself."""
    if isinstance(node, tuple):  # a key and its value
        return sum(_size(part, known) for part in node)
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known
        known[id(node)] = 1 + sum(_size(child, known) for child in node.value)
    return known[id(node)]


def _numbers(value: Any) -> Any:
    """PyYAML reads `5e-6` as text (YAML 1.1 wants `5.0e-6`); here it is a number."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _NUMBER.match(value) else value


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate one recipe; `overrides` are "section.key=value" as of `--set`."""
    path = Path(path)
    try:
        raw = _parsed(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; name the recipe file in it") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path}: not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise RecipeError(_not_yaml(path, error)) from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected `key: value` lines, got {type(raw).__name__}")
    for override in overrides or []:
        set_field(raw, override)
    return validated(Recipe, raw, path.parent, f"{path} cannot be run")


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    """Where the fault is; never what stands there, which may be somebody's data."""
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".tsv", ".txt")):
        return f"{path} is data, not a recipe; `flatgd init` writes a recipe that names it"
    mark = getattr(error, "problem_mark", None)
    place = f":{mark.line + 1}" if mark else ""
    return f"{path}{place}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}"


def changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """What differs between two recipes, as JSON has them.

    >>> list(changes({"seed": 0, "train": {"rho": 1}}, {"train": {"rho": 2}}))
    ['seed: 0 -> not set', 'train.rho: 1 -> 2']
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in {**before, **now}:
            inner = f"{place}.{key}" if place else str(key)
            yield from changes(before.get(key, NOT_SET), now.get(key, NOT_SET), inner)
    elif before != now:
        yield f"{place}: {_brief(before)} -> {_brief(now)}"


def _brief(value: Any) -> str:
    text = value if value is NOT_SET else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def as_text(recipe: Recipe) -> str:
    """What was set in a recipe, overrides and all, as a recipe file that works from any folder.
    Tokens and passwords are left out."""
    fields = plain_values(recipe.model_dump(exclude_unset=True))
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def shareable_text(recipe: Recipe) -> str:
    """`as_text` for others: of each local path only its last part."""
    fields = without_paths(plain_values(recipe.model_dump(exclude_unset=True)))
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def plain_values(value: Any) -> Any:
    """A value that JSON can hold, with absolute paths and without secrets."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not _SECRET.search(str(key))}
        return {str(key): plain_values(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, date):
        return str(value)
    is_model = isinstance(value, str) and os.sep in value and Path(value).is_dir()
    return _from_anywhere(Path(value)) if is_model or isinstance(value, Path) else value


def without_paths(value: Any) -> Any:
    """The value with the last part alone of each absolute path.

    >>> without_paths({"backbone": "/home/me/model", "rho": 0.05})
    {'backbone': 'model', 'rho': 0.05}
    """
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    is_path = isinstance(value, str) and os.path.isabs(value)
    return Path(value).name if is_path else value


def _from_anywhere(path: Path) -> str:
    """An absolute path, or demo:NAME."""
    if path.is_relative_to(PACKAGE / "demo"):
        return f"demo:{path.relative_to(PACKAGE / 'demo')}"
    return str(path.absolute())


def write_template(path: Path, backbone: str, replies: str) -> None:
    """Write a recipe with every part commented; RecipeError where the file exists."""
    text = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")
    here = [_seen_from(path.parent, value) for value in (backbone, replies)]
    filled = dict(zip(("NAME", "BACKBONE", "REPLIES"), (path.stem, *here), strict=True))
    for blank, value in filled.items():
        text = text.replace(f"<{blank}>", value if blank == "NAME" else json.dumps(value))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(f"{path} exists; name another file") from None
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error.strerror}") from None


def _seen_from(folder: Path, value: str) -> str:
    """A path that exists, as a recipe in `folder` has to write it; anything else as it is."""
    is_here = Path(value).exists() and not Path(value).is_absolute()
    return os.path.relpath(value, folder) if is_here else value


def validated(kind: type[Checked], raw: dict[str, Any], folder: Path, heading: str) -> Checked:
    """`raw` as a section, paths from `folder`; one RecipeError names every fault."""
    try:
        return kind.model_validate(_numbers(raw), context={"folder": folder})
    except ValidationError as error:
        lines = [f"  {_explain(fault, kind)}" for fault in error.errors()]
        raise RecipeError("\n".join([f"{heading}:", *lines])) from None


def set_field(raw: Any, override: str) -> None:
    """Put one "section.key=value" into `raw`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set wants section.key=value, got {override!r}")
    *parents, leaf = key.split(".")
    for parent in parents:
        if isinstance(raw, list):
            raw = _item(raw, parent, key)
            continue
        child = raw.setdefault(parent, {})
        if child is None:
            child = raw[parent] = {}
        if not isinstance(child, dict | list):
            raise RecipeError(f"--set {key}: {parent!r} is not a section")
        raw = child
    if isinstance(raw, list):
        _item(raw, leaf, key)
    try:
        raw[leaf if isinstance(raw, dict) else int(leaf)] = _parsed(text)
    except yaml.YAMLError:
        raise RecipeError(f"--set {key}: {text!r} is not valid YAML") from None


def _item(items: list[Any], number: str, key: str) -> Any:
    """One element of a list, counted from 0."""
    if not number.isdigit() or int(number) >= len(items):
        raise RecipeError(f"--set {key}: {number!r} is none of 0..{len(items) - 1}")
    return items[int(number)]


def _explain(fault: Any, kind: type[Section]) -> str:
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        *_, wrong = fault["loc"]
        return f"{place}: unknown key{nearest(str(wrong), _fields(kind, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{place}: missing"
    if fault["type"] == "value_error":
        return f"{place}: {fault['ctx']['error']}".removeprefix(": ")
    return f"{place}: {fault['msg']}, got {str(fault['input'])[:60]!r}"


def _fields(kind: type[Section], place: tuple[Any, ...]) -> list[str]:
    """The keys allowed at one place of a section."""
    model: Any = kind
    for part in place:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
            model = getattr(model, "__args__", (model,))[0]
    return list(model.model_fields)
