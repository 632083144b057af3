"""Everything that can be wrong with a recipe, found before any weights are loaded."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

from flatgd.data.mixture import (
    Sets,
    answerable,
    fetch_hint,
    load_sets,
    load_source,
    scorable,
    to_answer,
)
from flatgd.errors import FlatGDError, RecipeError, nearest
from flatgd.evaluation.hf_judge import check_judge
from flatgd.families import Family, family_of
from flatgd.methods import METHODS
from flatgd.models import check_token_map, is_at_hand, is_hub_name, load_config, load_tokenizer
from flatgd.recipe import JudgeSettings, Recipe, Source
from flatgd.training import FlatGDConfig

OURS = {"output_dir", "seed", "max_history_tokens", "max_reply_tokens", "turn_separator"}
EXPERTS = {"clean_expert": "clean", "toxic_expert": "toxic"}
RESERVED = {"backbone", "reference", "experts", *EXPERTS}


def training_config(recipe: Recipe, overrides: dict[str, Any], output: Path) -> FlatGDConfig:
    """FlatGDConfig of the recipe's `train` with `overrides`; RecipeError for unknown keys."""
    fields = recipe.training_fields(overrides)
    known = {f.name for f in dataclasses.fields(FlatGDConfig) if f.init} - OURS
    faults = [
        f"train: unknown key {k!r}{nearest(k, sorted(known))}" for k in fields if k not in known
    ]
    if faults:
        raise RecipeError("\n".join(faults))
    try:
        return FlatGDConfig(
            output_dir=str(output),
            seed=recipe.seed,
            max_history_tokens=recipe.max_history_tokens,
            max_reply_tokens=recipe.max_reply_tokens,
            turn_separator=recipe.turn_separator,
            **{"disable_tqdm": True, **fields},
        )
    except (TypeError, ValueError) as error:
        raise RecipeError(f"train: {error}") from None


def check(recipe: Recipe) -> Sets:
    """The recipe's data, when all is in order; else one error that names every fault."""
    faults = _method_faults(recipe) + _model_faults(recipe, _models(recipe))
    sets = None
    try:
        sets = load_sets(recipe.data, recipe.seed)
    except FlatGDError as error:
        faults.append(str(error))
    else:
        faults += _evaluation_faults(recipe, sets)
    if faults or sets is None:
        raise RecipeError("\n".join(faults))
    return sets


def check_offline(recipe: Recipe) -> list[str]:
    """Check what needs no network; returns what could not be checked, one line each.

    Models that are neither folders nor in the hub's cache are passed over, and data files that are
    not there; where all files are there, the sets are checked as `check` does.
    """
    models = _models(recipe)
    absent = [source for source in _sources(recipe) if not source.path.exists()]
    if not absent and all(is_at_hand(name) for name in models.values()):
        check(recipe)
        return []
    here = {r: name for r, name in models.items() if is_at_hand(name) or not is_hub_name(name)}
    faults = _method_faults(recipe) + _model_faults(recipe, here)
    try:
        if absent:
            for source in _sources(recipe):
                if source not in absent:
                    load_source(source)
        else:
            faults += _evaluation_faults(recipe, load_sets(recipe.data, recipe.seed))
    except FlatGDError as error:
        faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    skipped = [f"{role}: {name} (on the hub)" for role, name in models.items() if role not in here]
    paths = dict.fromkeys(f"data: {s.path} (not here{fetch_hint(s.format)})" for s in absent)
    return [*skipped, *paths]


def _sources(recipe: Recipe) -> list[Source]:
    return [*recipe.data.policy, *recipe.data.judge, *recipe.data.test]


def _models(recipe: Recipe) -> dict[str, str]:
    """Every model that a recipe names, by its role."""
    named = {role: getattr(recipe, role) for role in ("backbone", "expert_backbone", "scorer")}
    named |= {f"judges.{judge.label}": judge.model for judge in recipe.judges}
    return {role: name for role, name in named.items() if name is not None}


def _method_faults(recipe: Recipe) -> list[str]:
    faults = []
    for name in recipe.methods:
        if name in RESERVED:
            faults.append(f"methods.{name}: this name is taken; it stands for something else")
        elif name not in METHODS:
            faults.append(f"methods.{name}: no such method{nearest(name, list(METHODS))}")
    shared = _config_faults(recipe, {})  # told once, not once a method
    for name, overrides in [*recipe.methods.items(), ("experts", recipe.experts)]:
        lines = _config_faults(recipe, overrides or {})
        faults += [f"{name}: {line}" for line in lines if line not in shared]
    return shared + faults


def _config_faults(recipe: Recipe, overrides: dict[str, Any]) -> list[str]:
    try:
        training_config(recipe, overrides, recipe.output)
    except FlatGDError as error:
        return str(error).splitlines()
    return []


def _model_faults(recipe: Recipe, models: dict[str, str]) -> list[str]:
    """What is wrong with the models at hand, by config and tokenizer alone."""
    faults = []
    families = {}
    judges = {f"judges.{judge.label}": judge for judge in recipe.judges}
    for role, name in models.items():
        try:
            if role in judges:
                _check_judge(judges[role])
                continue
            config = load_config(name)
            families[role] = family_of(config, load_tokenizer(name))
            faults += _length_faults(role, recipe, config)
        except FlatGDError as error:
            faults.append(f"{role}: {error}")
    if {"backbone", "expert_backbone"} <= families.keys():
        faults += _expert_faults(families["backbone"], families["expert_backbone"])
    return faults


def _check_judge(settings: JudgeSettings) -> None:
    if settings.kind == "hf":
        check_judge(settings)
    else:
        load_config(str(settings.model))
        load_tokenizer(str(settings.model))


def _expert_faults(backbone: Family, expert: Family) -> list[str]:
    """Whether experts of another size can steer the backbone: one token map, one layout."""
    try:
        check_token_map(backbone.tokenizer, expert.tokenizer, ("backbone", "expert_backbone"))
    except FlatGDError as error:
        return [str(error)]
    if replace(backbone, tokenizer=expert.tokenizer, vocabulary=expert.vocabulary) != expert:
        return ["expert_backbone lays out a dialogue in another way; use the backbone's family"]
    return []


def _length_faults(role: str, recipe: Recipe, config: Any) -> list[str]:
    """Whether what is read and said fits the model's positions."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return []
    reply = max(recipe.max_reply_tokens, recipe.generate.max_new_tokens)
    longest = reply + 1 if config.is_encoder_decoder else reply + recipe.max_history_tokens
    if longest <= positions:
        return []
    return [
        f"{role} has {positions} positions, but this recipe needs {longest}; lower "
        "max_history_tokens, max_reply_tokens or generate.max_new_tokens"
    ]


def _evaluation_faults(recipe: Recipe, sets: Sets) -> list[str]:
    """Whether there is something to answer and something to tell apart."""
    faults = []
    if not answerable(to_answer(sets.test, recipe.data.test), 1, recipe.seed):
        faults.append(
            "data.test: no history to answer; a bot's reply with a history is needed in a source "
            "with answered: true"
        )
    if len({row.is_safe for row in scorable(sets.test)}) < 2:
        faults.append("data.test: the contrast needs safe and toxic replies of bots")
    for is_safe in (True, False):
        if len({row.conversation for row in sets.judge if row.is_safe is is_safe}) < 2:
            faults.append(
                f"data.judge: {'safe' if is_safe else 'toxic'} replies stand in fewer than two "
                "conversations, too few to set a threshold; give it more, or name conversations"
            )
    return faults
