"""Recipes as files: read with overrides, validated with all faults at once, and the template."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from yaml import MarkedYAMLError

from flatgd.config.recipe import Recipe
from flatgd.config.section import PACKAGE, Section
from flatgd.errors import RecipeError, UsageError, nearest

Checked = TypeVar("Checked", bound=Section)
MOST = 10_000  # values in a recipe
NOT_SET = "not set"
_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + kind for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}
_UNUSABLE = re.compile("[\0\ud800-\udfff]")
_NUMBER = re.compile(r"^[+-]?\d+(\.\d*)?[eE][+-]?\d+$")


class _Loader(yaml.SafeLoader):
    """Plain values only. A date stays text; a value that does not fit its tag is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError):
            kind = node.tag.removeprefix(_TAG)
            raise _fault(node, f"a value is not a valid {kind}; quote it if it is text") from None


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag != f"{_TAG}timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _fault(node: yaml.Node, reason: str) -> MarkedYAMLError:
    return MarkedYAMLError(problem=reason, problem_mark=node.start_mark)


def _parsed(text: str) -> Any:
    """The value of YAML text.

    Raises RecipeError if it is nested too deep or too large: a few lines of aliases can stand for
    any number of values. Raises YAMLError for a duplicate key, an unknown tag, or a value that is
    not text, a number, a boolean, a list or a mapping.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if _size(node, {}) > MOST:
            raise RecipeError(f"more than {MOST:,} values, counting each repetition by an alias")
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise RecipeError("nested too deep") from None
    finally:
        loader.dispose()


def _size(node: Any, known: dict[int, float]) -> float:
    """How many values a node stands for; infinity for a node within itself. Raises YAMLError for
    duplicate keys, unknown tags and text that no file can hold."""
    if isinstance(node, tuple):  # a key and its value
        return sum(_size(part, known) for part in node)
    if node is None or id(node) in known:
        return known.get(id(node), 1)
    if node.tag not in _TAGS:
        raise _fault(node, f"tag {node.tag.removeprefix(_TAG)!r} is not supported")
    if not isinstance(node, yaml.CollectionNode):
        if _UNUSABLE.search(node.value):
            raise _fault(node, "a value holds a NUL character or half of a surrogate pair")
        return 1
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node)
    known[id(node)] = math.inf  # until it is known
    known[id(node)] = 1 + sum(_size(child, known) for child in node.value)
    return known[id(node)]


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    """Raises YAMLError for a key that occurs twice; YAML would silently keep the second value."""
    seen: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
            if key.value in seen:
                first = seen[key.value]
                raise _fault(key, f"duplicate key {key.value!r:.60}; it is also on line {first}")
            seen[key.value] = line


def _numbers(value: Any) -> Any:
    """`5e-6` as a number: PyYAML reads it as text, because YAML 1.1 wants `5.0e-6`."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _NUMBER.match(value) else value


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate one recipe. `overrides` are "section.key=value", as for `--set`."""
    path = Path(path)
    try:
        raw = _parsed(_text_of(path))
    except yaml.YAMLError as error:
        raise RecipeError(_not_yaml(path, error)) from None
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: expected `key: value` lines, got {type(raw).__name__}")
    for override in overrides or []:
        set_field(raw, override)
    return validated(Recipe, raw, path.parent, f"{path} cannot be run")


def _text_of(path: Path) -> str:
    """The text of a recipe file; UsageError where the path is not one's."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such recipe") from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder; name the recipe file in it") from None
    except UnicodeDecodeError:
        raise RecipeError("not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{str(path)[:200]} cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL character
        raise UsageError(f"{str(path)[:200]!r} is not a path") from None


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    """Where the fault is, but not what stands there, which may be somebody's data."""
    if path.name.removesuffix(".gz").endswith((".jsonl", ".json", ".csv", ".tsv", ".txt")):
        return f"{path} is data, not a recipe; `flatgd init` writes a recipe that names it"
    return f"{path}{_problem(error)}"


def _problem(error: yaml.YAMLError) -> str:
    """ ":LINE: what is wrong" of an error in YAML."""
    mark = getattr(error, "problem_mark", None)
    place = f":{mark.line + 1}" if mark else ""
    return f"{place}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}"


def changes(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """What differs between two recipes in their JSON form.

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
    """What was set in a recipe, overrides and all, as a recipe file that works from any folder."""
    fields = plain_values(recipe.model_dump(exclude_unset=True))
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def shareable_text(recipe: Recipe) -> str:
    """`as_text` for others: of each local path only its last part."""
    fields = without_paths(plain_values(recipe.model_dump(exclude_unset=True)))
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def plain_values(value: Any) -> Any:
    """A value that JSON can hold, with absolute paths."""
    if isinstance(value, dict):
        return {str(key): plain_values(item) for key, item in value.items()}
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


def write_template(
    path: Path, backbone: str, replies: str, fields: Mapping[str, Any] | None = None
) -> None:
    """Write a commented recipe; `fields` are further ones of the sources. Raises UsageError if the
    file exists or cannot be written.

    `python scripts/options.py` makes the template's comments from the options' own sentences.
    """
    text = Path(__file__).with_name("template.yaml").read_text(encoding="utf-8")
    shown = [f", {name}: {_in_yaml(value)}" for name, value in (fields or {}).items()]
    filled = {
        "FIELDS": "".join(shown),
        "NAME": re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem),
        "BACKBONE": _in_yaml(_seen_from(path.parent, backbone)),
        "REPLIES": _in_yaml(_seen_from(path.parent, replies)),
    }
    for blank, value in filled.items():
        text = text.replace(f"<{blank}>", value)
    write_new(path, text)


def write_new(path: Path, text: str) -> None:
    """Write a file that does not exist yet. Raises UsageError if it does or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(
            f"{path} already exists. Choose another file, or delete it first."
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def _in_yaml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _seen_from(folder: Path, value: str) -> str:
    """A path that exists, relative to `folder`, where the recipe stands. Anything else is returned
    unchanged."""
    is_here = os.path.exists(value) and not Path(value).is_absolute()
    return os.path.relpath(value, folder) if is_here else value


def validated(kind: type[Checked], raw: dict[str, Any], folder: Path, heading: str) -> Checked:
    """`raw` as a section, paths relative to `folder`. Raises one RecipeError for all faults."""
    try:
        return kind.model_validate(_numbers(raw), context={"folder": folder})
    except ValidationError as error:
        lines = [f"  {_explain(fault, kind)}" for fault in error.errors()]
        raise RecipeError("\n".join([f"{heading}:", *lines])) from None


def set_field(raw: Any, override: str) -> None:
    """Put one "section.key=value" into `raw`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UsageError(f"--set needs section.key=value, got {key!r}")
    *parents, leaf = key.split(".")
    for parent in parents:
        if isinstance(raw, list):
            raw = _item(raw, parent, key)
            continue
        child = raw.setdefault(parent, {})
        if child is None:
            child = raw[parent] = {}
        if not isinstance(child, dict | list):
            raise UsageError(f"--set {key}: {parent!r} is not a section")
        raw = child
    if isinstance(raw, list):
        _item(raw, leaf, key)
    try:
        raw[leaf if isinstance(raw, dict) else int(leaf)] = _parsed(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "unreadable"
        raise UsageError(f"--set {key}: not valid YAML: {problem}") from None


def _item(items: list[Any], number: str, key: str) -> Any:
    """One element of a list, counted from 0."""
    if not number.isdecimal() or len(number) > 9 or int(number) >= len(items):
        raise UsageError(f"--set {key}: {number!r} is none of 0..{len(items) - 1}")
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
    if isinstance(fault["input"], dict | list | tuple):  # may hold anything, a password too
        return f"{place}: {fault['msg']}, got a {type(fault['input']).__name__}"
    return f"{place}: {fault['msg']}, got {str(fault['input'])[:60]!r}"


def _fields(kind: type[Section], place: tuple[Any, ...]) -> list[str]:
    """The keys allowed at one place of a section."""
    model: Any = kind
    for part in place:
        if isinstance(part, str):
            model = model.model_fields[part].annotation
            model = getattr(model, "__args__", (model,))[0]
    return list(model.model_fields)
