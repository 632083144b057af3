"""The part of a recipe that each artifact is built from. Manifests keep it, so that a report, a
card and an export can tell whether the recipe they are given is the one that was run.

Fingerprints digest the contents of data and models too, but they need torch. This module does not.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flatgd.artifacts import layout
from flatgd.config.loading import plain_values
from flatgd.config.names import BACKBONE, EXPERTS, REFERENCE
from flatgd.config.recipe import Recipe

Inputs = Mapping[str, Any]
OUTPUT = "output"  # the run's folder, so that paths can be compared after both were moved
LAYOUT = (
    *("max_history_tokens", "max_reply_tokens", "turn_separator", "template_date"),
    "chat_template_kwargs",
)
NOT_SET = "not set"


class Change(NamedTuple):
    """A field of the recipe whose value is not the one that an artifact was built with."""

    field: str
    before: Any
    now: Any


def inputs_of(recipe: Recipe) -> dict[str, Inputs]:
    """The fields of the recipe, by dotted name, that each artifact of a run is built from."""
    fields = plain_values(recipe.model_dump())
    layout_fields = {name: fields[name] for name in ("seed", *LAYOUT)}
    data = {name: _sources(name, fields) for name in ("policy", "judge", "test", "eval")}
    tests = data["test"] | layout_fields
    found: dict[str, Any] = {}
    for name in recipe.models:
        own = {} if name != BACKBONE else {"backbone": fields["backbone"]}
        own |= _dtype(recipe, name)
        if name != BACKBONE:
            found[layout.model(name)] = _model(recipe, name, fields, data) | layout_fields
            for frozen in {name, *EXPERTS}:
                found[layout.model(name)] |= _dtype(recipe, frozen)
        sampling = {**_flat("sample", fields["sample"]), **_flat("generate", fields["generate"])}
        for unused in ("generate.histories", "generate.samples", "sample.share"):
            sampling.pop(unused, None)
        found[layout.samples(name)] = own | sampling | data["policy"] | layout_fields
        generate = _flat("generate", fields["generate"])
        found[layout.generations(name)] = own | generate | tests
        found[layout.scores(name)] = own | _scoring(recipe, fields) | tests
    found[layout.scores(REFERENCE)] = _scoring(recipe, fields) | tests
    for n, judge in enumerate(recipe.judges):
        own = _flat(f"judges.{n}", fields["judges"][n]) | _dtype(recipe, judge.label)
        found[layout.judge(judge.label)] = own | data["judge"] | data["test"]
    in_loop = _flat("sample.judge", fields["sample"]["judge"])
    found[layout.IN_LOOP_JUDGE] = in_loop | data["policy"]
    output = {OUTPUT: os.path.abspath(recipe.output)}
    return {name: json.loads(json.dumps(output | own)) for name, own in found.items()}


def _model(
    recipe: Recipe, name: str, fields: dict[str, Any], data: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    overrides = recipe.overrides(name)
    found = _flat("train", plain_values(recipe.training_fields(overrides))) | data["policy"]
    if share := recipe.share_of(name):
        found["sample.share"] = share
    if recipe.evaluates(overrides):
        found |= data["eval"]
    if name in EXPERTS:
        return found | {key: fields[key] for key in ("backbone", "expert_backbone")}
    if checkpoint := recipe.checkpoint_of(name):
        return {f"methods.{name}.checkpoint": checkpoint}
    start = recipe.start_of(name)
    return found | {
        **({"backbone": fields["backbone"]} if start == BACKBONE else {}),
        f"methods.{name}.method": recipe.kind_of(name),
        f"methods.{name}.start": start,
        f"methods.{name}.sampled_from": recipe.sampled_from(name),
    }


def _scoring(recipe: Recipe, fields: dict[str, Any]) -> dict[str, Any]:
    return {"scorer": fields["scorer"]} | _dtype(recipe, "scorer")


def _dtype(recipe: Recipe, name: str) -> dict[str, Any]:
    """The precision that is set for a model. The default is left out, so that runs from before the
    option still count as those of their recipe."""
    chosen = recipe.dtype_of(name)
    return {} if chosen == "auto" else {f"dtype of {name}": chosen}


def _sources(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, source in enumerate(fields["data"][name]):
        found |= _flat(f"data.{name}.{n}", source)
    return found


def _flat(name: str, value: Any) -> dict[str, Any]:
    """The values in nested dicts, by dotted name; lists are values."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(f"{name}.{key}", inner)
    return found


def changes(before: Inputs, now: Inputs) -> Iterator[Change]:
    """What differs. A path also counts as equal if it is equal relative to the run's folder: a run
    can be moved together with its data."""
    for field in dict.fromkeys([*before, *now]):
        old, new = before.get(field, NOT_SET), now.get(field, NOT_SET)
        is_new = old == NOT_SET and new is None  # an option that came with a later version
        if field != OUTPUT and old != new and not is_new and not _was_moved(old, new, before, now):
            yield Change(field, old, new)


def _was_moved(old: Any, new: Any, before: Inputs, now: Inputs) -> bool:
    if not all(isinstance(value, str) and os.path.isabs(value) for value in (old, new)):
        return False
    try:
        return os.path.relpath(old, before[OUTPUT]) == os.path.relpath(new, now[OUTPUT])
    except ValueError:  # on two drives of Windows
        return False
