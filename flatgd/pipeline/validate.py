"""Everything that can be wrong with a recipe, found before any weights are loaded.

Every function returns its faults as lines, so that the loader can report all of them at once.
"""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flatgd.config.names import EXPERTS, RESERVED
from flatgd.config.options import faults_of
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets, answer_candidates, draw_histories, scorable
from flatgd.errors import FlatGDError, ModelError, nearest
from flatgd.judges.registry import check_settings
from flatgd.methods import METHODS, Clean, Merge, Method, System
from flatgd.models.adapters import is_toxic_expert, with_adapter
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import DialogueFormat
from flatgd.models.loading import check_token_map, load_config, load_tokenizer, on_meta
from flatgd.pipeline.training_config import training_config
from flatgd.training import FlatGDConfig


def named_models(recipe: Recipe) -> dict[str, str]:
    """Every model that a recipe names, by its role."""
    named = {role: getattr(recipe, role) for role in ("backbone", "expert_backbone", "scorer")}
    named |= {f"judges.{judge.label}": judge.model for judge in recipe.judges}
    if _samples(recipe):
        named["sample.judge"] = recipe.sample.judge.model
    named |= {f"methods.{name}": recipe.checkpoint_of(name) for name in recipe.methods}
    return {role: name for role, name in named.items() if name is not None}


def recipe_faults(recipe: Recipe, models: dict[str, str]) -> list[str]:
    """What is wrong with the settings, and with those of `named_models` that are given."""
    faults = _method_faults(recipe) + _model_faults(recipe, models)
    return faults + _adapter_faults(recipe, models)


def _method_faults(recipe: Recipe) -> list[str]:
    faults = []
    shared = _config_faults(recipe, {}, Clean)  # reported once, not once for each method
    if recipe.training_fields(recipe.experts).get("push_to_hub"):
        shared.append("experts: push_to_hub would upload the toxic expert; set it at a method only")
    parts = {"experts": Clean} | {n: METHODS.get(recipe.kind_of(n), Clean) for n in recipe.methods}
    for name, kind in parts.items():
        if name in recipe.methods:
            faults += [f"methods.{name}: {fault}" for fault in _entry_faults(recipe, name)]
        overrides = recipe.experts if name == "experts" else recipe.overrides(name)
        lines = _config_faults(recipe, overrides, kind)
        faults += [f"{name}: {line}" for line in lines if line not in shared]
        faults += [f"methods.{name}: {line}" for line in _option_faults(kind, overrides)]
    reporting = {_resolved(judge.model) for judge in recipe.judges if judge.model}
    inner = recipe.sample.judge.model
    if inner and _resolved(inner) in reporting and _samples(recipe):
        faults.append("sample.judge: is a reporting judge too; what trains must not report")
    return shared + faults + list(_held_out_faults(recipe))


def _held_out_faults(recipe: Recipe) -> Iterator[str]:
    """Evaluations without rows, and rows without evaluations."""
    named = {n: recipe.experts if n == "experts" else recipe.overrides(n) for n in _trained(recipe)}
    evaluated = [name for name, overrides in named.items() if recipe.evaluates(overrides)]
    if recipe.data.eval and not evaluated:
        yield (
            "data.eval: nothing is evaluated on it; set train.eval_strategy (epoch or steps), or "
            "leave it out"
        )
    if evaluated and not recipe.data.eval:
        yield (
            f"{evaluated[0]}: eval_strategy needs rows to evaluate; give data.eval, a list of "
            "sources as those of data.policy"
        )


def _entry_faults(recipe: Recipe, name: str) -> Iterator[str]:
    """What is wrong with an entry's name, kind and the models that it builds on."""
    kind, start = recipe.kind_of(name), recipe.start_of(name)
    source = recipe.sampled_from(name)
    if name in RESERVED:
        yield "this name is taken; it stands for something else"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        yield "names are up to 100 letters, digits, _ . and -, because they become folders"
    if name.endswith((".partial", ".partial.key")):
        yield "names must not end in .partial, which is the name of an unfinished folder"
    if kind not in METHODS:
        yield f"no such method{nearest(kind, list(METHODS))}"
        return
    is_given = recipe.checkpoint_of(name) is not None
    if is_given != (kind == "checkpoint") or (is_given and start != "backbone"):
        yield (
            "a checkpoint is compared as it is and has no method; write {checkpoint: FOLDER} alone"
        )
        return
    before = list(recipe.methods)[: list(recipe.methods).index(name)]
    weighty = [n for n in before if not _is_guided(recipe, n)]
    if start == "toxic_expert":
        yield "start: toxic_expert must not be used; start from another model"
    elif start not in ("backbone", "clean_expert", *weighty):
        yield f"start: {start!r} is not backbone, clean_expert or an earlier entry with weights"
    if source is not None and source not in ("backbone", *EXPERTS, *before):
        yield f"sampled_from: {source!r} is not backbone, an expert or an earlier entry"
    if source is not None and not _learns_from_samples(METHODS[kind]):
        yield f"sampled_from: {kind} learns from no toxic replies; leave it out"
    share = recipe.share_of(name)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        yield f"share: expected a number in 0..1, got {share!r}"
    if issubclass(METHODS[kind], Merge) and recipe.expert_backbone:
        yield f"{kind} subtracts weights, so experts must come from the backbone itself"
    for key in recipe.overrides(name):
        if key in getattr(METHODS[kind], "fixed", ()):
            yield f"{key} is fixed by {kind} and cannot be set"
        elif not issubclass(METHODS[kind], Method) and key not in METHODS[kind].fields():
            yield f"{kind} is not trained and has no {key}"


def _resolved(model: str) -> str:
    """A folder by whatever path, or a hub name."""
    return os.path.realpath(model) if Path(model).is_dir() else model


def _samples(recipe: Recipe) -> bool:
    """Whether something learns from sampled replies."""
    kinds = [METHODS.get(recipe.kind_of(name)) for name in recipe.methods]
    in_pairs = any(k and issubclass(k, Method) and k.learns_from == "pairs" for k in kinds)
    from_model = any(recipe.sampled_from(name) for name in recipe.methods)
    own = any(recipe.share_of(name) for name in recipe.methods)
    return in_pairs or from_model or own


def _is_guided(recipe: Recipe, name: str) -> bool:
    """Whether an entry speaks by a guide, so that no other can start from it."""
    return METHODS.get(recipe.kind_of(name), Clean).needs_guide


def _learns_from_samples(kind: type[System]) -> bool:
    return issubclass(kind, Method) and (kind.trains_on_toxic or kind.learns_from == "pairs")


def _option_faults(kind: type[System], overrides: dict[str, Any]) -> Iterator[str]:
    """What is wrong with a method's own options. FlatGDConfig checks those that it has too."""
    known = {field.name for field in dataclasses.fields(FlatGDConfig)}
    own = {name: field for name, field in kind.options().items() if name not in known}
    defaults = kind.fields()
    yield from faults_of(own, lambda name: overrides.get(name, defaults[name]))


def _config_faults(recipe: Recipe, overrides: dict[str, Any], kind: type[System]) -> list[str]:
    try:
        training_config(recipe, overrides, recipe.output, kind)
    except FlatGDError as error:
        return str(error).splitlines()
    return []


def _adapter_faults(recipe: Recipe, models: dict[str, str]) -> list[str]:
    """Adapters that their base has no layers for, or none of its own; tried without weights."""
    faults: dict[str, str] = {}
    for name, kind in _trained(recipe).items():
        overrides = recipe.experts if name == "experts" else recipe.overrides(name)
        role = "expert_backbone" if name == "experts" and recipe.expert_backbone else "backbone"
        try:
            settings = training_config(recipe, overrides, recipe.output, kind)
            _refuse_toxic(models[role])
            config = load_config(models[role])
        except (FlatGDError, KeyError):  # reported elsewhere, or not at hand
            continue
        if settings.lora_rank:
            try:
                with_adapter(on_meta(config), settings)
            except ModelError as error:
                faults.setdefault(str(error), f"{name}: {error}")
    return list(faults.values())


def _trained(recipe: Recipe) -> dict[str, type[Method]]:
    """What a recipe trains, by name, with its kind."""
    kinds = {n: METHODS.get(recipe.kind_of(n), System) for n in recipe.methods}
    return {"experts": Clean} | {n: k for n, k in kinds.items() if issubclass(k, Method)}


def _model_faults(recipe: Recipe, models: dict[str, str]) -> list[str]:
    """What is wrong with the models at hand, by config and tokenizer alone."""
    faults = []
    families = {}
    judges = {f"judges.{judge.label}": judge for judge in recipe.judges}
    judges["sample.judge"] = recipe.sample.judge
    for role, name in models.items():
        try:
            _refuse_toxic(name)
            if role in judges:
                check_settings(judges[role])
                continue
            config = load_config(name)
            families[role] = format_for(config, load_tokenizer(name), *recipe.layout)
            faults += _length_faults(role, recipe, config)
        except FlatGDError as error:
            faults.append(f"{role}: {error}")
    if {"backbone", "expert_backbone"} <= families.keys():
        faults += _expert_faults(families["backbone"], families["expert_backbone"])
    return faults


def _refuse_toxic(name: str) -> None:
    """Raises ModelError for a toxic expert, and for an adapter on one."""
    if Path(name).is_dir() and is_toxic_expert(Path(name)):
        raise ModelError(f"{name} is a toxic expert, which must not be used; name another")


def _layout(dialogue_format: DialogueFormat) -> tuple[type, dict[str, Any]]:
    """How a family lays out a dialogue, whichever tokenizer it does so with."""
    names = {field.name for field in dataclasses.fields(dialogue_format)} - {
        "tokenizer",
        "vocabulary",
    }
    return type(dialogue_format), {name: getattr(dialogue_format, name) for name in names}


def _expert_faults(backbone: DialogueFormat, expert: DialogueFormat) -> list[str]:
    """Whether experts of another size can steer the backbone: one token map, one layout."""
    try:
        check_token_map(backbone.tokenizer, expert.tokenizer, ("backbone", "expert_backbone"))
    except FlatGDError as error:
        return [str(error)]
    if _layout(backbone) != _layout(expert):
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


def data_faults(recipe: Recipe, sets: Sets) -> list[str]:
    """Whether there is something to answer and something to tell apart."""
    faults = []
    if not draw_histories(answer_candidates(sets.test, recipe.data.test), 1, recipe.seed):
        faults.append(
            "data.test: no history to answer; a bot's reply with a history is needed in a source "
            "with answered: true"
        )
    if len({row.is_safe for row in scorable(sets.test)}) < 2:
        faults.append("data.test: the contrast needs safe and toxic replies of bots")
    judged = {"judge": sets.judge} | ({"policy": sets.policy} if _samples(recipe) else {})
    for part, rows in judged.items():
        for is_safe in (True, False):
            if len({row.conversation for row in rows if row.is_safe is is_safe}) < 2:
                faults.append(
                    f"data.{part}: {'safe' if is_safe else 'toxic'} replies stand in fewer than "
                    "two conversations, too few to set a judge's threshold; give it more, or name "
                    "conversations"
                )
    return faults
