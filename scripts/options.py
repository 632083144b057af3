"""Write docs/options.md and the recipe of `flatgd init` from the options' own data.

    python scripts/options.py

Run it after a change of an option or of scripts/template.yaml. There a line `#? SECTION.OPTION`
stands for that option's sentence and range.
"""

import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flatgd.config.judge import JudgeSettings
from flatgd.config.options import Option, default_of, kinds_of, option_of
from flatgd.config.recipe import Generate, Recipe, Report, Sample
from flatgd.config.section import ModelName
from flatgd.config.source import Data, Source
from flatgd.methods import METHODS
from flatgd.pipeline.training_config import SET_ELSEWHERE
from flatgd.training import FlatGDConfig

ROOT = Path(__file__).parent.parent
TEMPLATE = ROOT / "scripts/template.yaml"
SECTIONS: dict[str, tuple[type[BaseModel], str]] = {
    "recipe": (Recipe, "The whole recipe"),
    "data": (Data, "`data`: the sets"),
    "source": (Source, "Each source of a set"),
    "generate": (Generate, "`generate`"),
    "judges": (JudgeSettings, "Each of `judges`, and `sample.judge`"),
    "sample": (Sample, "`sample`"),
    "report": (Report, "`report`"),
}
INTRO = """# Every option of a recipe

`python scripts/options.py` writes this page from the fields of the code; do not edit it by hand. In
the ranges, x is the value. A default of "not set" leaves the choice to flatgd, as the last column
says.

`train` holds fields of FlatGDConfig for experts and methods alike. `experts` and the entries of
`methods` override them. All three also take any other field of transformers'
[TrainingArguments](https://huggingface.co/docs/transformers/main_classes/trainer).
"""
HEAD = "| option | range | unit | default | effect |\n|---|---|---|---|---|"
WORDS = {bool: "true, false", str: "text", int: "whole number", float: "number", Path: "path"}


def own_fields() -> dict[str, Any]:
    """The fields of FlatGDConfig that it adds to TrainingArguments or gives another default."""
    described = {f.name: f for f in fields(FlatGDConfig) if "option" in f.metadata}
    return {name: field for name, field in described.items() if name not in SET_ELSEWHERE}


def fields_of(section: str) -> dict[str, Any]:
    return own_fields() if section == "train" else dict(SECTIONS[section][0].model_fields)


def option(place: str) -> Option:
    """The option at "section.name"."""
    section, name = place.split(".")
    return option_of(fields_of(section)[name])


def table(named: dict[str, Any]) -> str:
    return "\n".join([HEAD, *(row(name, field) for name, field in named.items())])


def row(name: str, field: Any) -> str:
    found = option_of(field)
    kind = field.type if isinstance(field, Field) else field.rebuild_annotation()
    cells = [f"`{name}`", found.range or _type(kind), found.unit, _default(field), found.summary]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(kind: Any) -> str:
    """What kind of value an option without a range takes."""
    first = kinds_of(kind)[0]
    if first == ModelName:
        return "folder or hub name"
    while inner := getattr(first, "__origin__", None):
        first = inner
    if first in (list, tuple):
        return "list"
    if first is dict or (isinstance(first, type) and issubclass(first, BaseModel)):
        return "mapping"
    return WORDS.get(first, "")


def _default(field: Any) -> str:
    value = default_of(field)
    if value is MISSING:
        return "required"
    if value is None or value == option_of(field).unset:
        return "not set"
    if isinstance(value, BaseModel) or (isinstance(value, list) and value):
        return "see below"
    return "`" + (str(value) if hasattr(value, "isoformat") else json.dumps(value)) + "`"


def document() -> str:
    parts = [INTRO]
    parts += [
        f"## {title}\n\n{table(dict(kind.model_fields))}\n" for kind, title in SECTIONS.values()
    ]
    parts.append(f"## `train`: fields of FlatGDConfig\n\n{table(own_fields())}\n")
    known = {field.name for field in fields(FlatGDConfig)}
    names: dict[str, list[str]] = {}
    for name, kind in METHODS.items():
        own = {key: field for key, field in kind.options().items() if key not in known}
        names.setdefault(table(own) if own else "", []).append(name)
    for rows, alike in names.items():
        if rows:
            parts.append(f"## `methods`: options of {', '.join(alike)}\n\n{rows}\n")
    return "\n".join(parts)


def recipe() -> str:
    """The recipe of `flatgd init`, its comments filled in."""
    return "\n".join(line for text in TEMPLATE.read_text().split("\n") for line in _filled(text))


def _filled(line: str) -> Iterator[str]:
    if asked := re.fullmatch(r"( *)#\? (\S+)", line):
        start = f"{asked[1]}# "
        yield from textwrap.wrap(
            option(asked[2]).text, 100, initial_indent=start, subsequent_indent=start
        )
    else:
        yield line


def written() -> dict[Path, str]:
    """What belongs into each file that this script writes."""
    return {ROOT / "docs/options.md": document(), ROOT / "flatgd/config/template.yaml": recipe()}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
        print(path)
