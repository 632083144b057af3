"""Everything that can be wrong with a recipe, found before any weights are loaded."""

import dataclasses
from pathlib import Path
from typing import Any

from flatgd.data.mixture import Sets, load_sets
from flatgd.errors import FlatGDError, RecipeError
from flatgd.methods import METHODS
from flatgd.models import family_of, load_config, load_tokenizer
from flatgd.recipe import Recipe, nearest
from flatgd.training import FlatGDConfig

OURS = {"output_dir", "seed", "max_history_tokens", "max_reply_tokens"}
EXPERTS = {"clean_expert": "clean", "toxic_expert": "toxic"}
RESERVED = {"backbone", "reference", *EXPERTS}


def training_config(recipe: Recipe, overrides: dict[str, Any], output: Path) -> FlatGDConfig:
    """FlatGDConfig of the recipe's `train` with `overrides`; RecipeError for unknown keys."""
    fields = {**recipe.train, **overrides}
    known = {f.name for f in dataclasses.fields(FlatGDConfig) if f.init} - OURS
    faults = [
        f"train: unknown key {k!r}{nearest(k, sorted(known))}" for k in fields if k not in known
    ]
    if faults:
        raise RecipeError("\n".join(faults))
    if {
        "flatness_weight",
        "penalty_share",
    } & overrides.keys():  # the override is the one that holds
        for name in {"flatness_weight", "penalty_share"} - overrides.keys():
            fields.pop(name, None)
    try:
        return FlatGDConfig(
            output_dir=str(output),
            seed=recipe.seed,
            max_history_tokens=recipe.max_history_tokens,
            max_reply_tokens=recipe.max_reply_tokens,
            **{"disable_tqdm": True, **fields},
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: {error}") from None


def check(recipe: Recipe) -> Sets:
    """The recipe's data, when all is in order; else one error that names every fault."""
    faults: list[str] = []
    faults += _method_faults(recipe)
    faults += _model_faults(recipe)
    sets = None
    try:
        sets = load_sets(recipe.data)
    except FlatGDError as error:
        faults.append(str(error))
    if faults or sets is None:
        raise RecipeError("\n".join(faults))
    return sets


def _method_faults(recipe: Recipe) -> list[str]:
    faults = []
    for name, overrides in {**recipe.methods, "experts": recipe.experts}.items():
        if name in RESERVED:
            faults.append(f"methods.{name}: this name is taken; it is always a row of the table")
        elif name not in METHODS and name != "experts":
            faults.append(f"methods.{name}: no such method{nearest(name, list(METHODS))}")
            continue
        try:
            training_config(recipe, overrides or {}, recipe.output)
        except FlatGDError as error:
            faults += [f"{name}: {line}" for line in str(error).splitlines()]
    return list(dict.fromkeys(faults))


def _model_faults(recipe: Recipe) -> list[str]:
    faults = []
    for role, name in (("backbone", recipe.backbone), ("scorer", recipe.scorer)):
        if name is None:
            continue
        try:
            family_of(load_config(name), load_tokenizer(name))
        except FlatGDError as error:
            faults.append(f"{role}: {error}")
    return faults
