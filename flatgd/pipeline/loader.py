"""A recipe's data, loaded and validated together with everything else in the recipe."""

from collections.abc import Sequence
from dataclasses import replace

from flatgd.config.recipe import Recipe
from flatgd.data.browse import TextMask
from flatgd.data.sets import Sets, fetch_hint, load_sets, load_source
from flatgd.dialogue import Dialogue
from flatgd.errors import FlatGDError, RecipeError
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import DialogueFormat, Example
from flatgd.models.loading import is_at_hand, is_hub_name, load_config, load_tokenizer
from flatgd.pipeline.validate import data_faults, named_models, recipe_faults


def load_validated(recipe: Recipe) -> Sets:
    """The recipe's data. Raises RecipeError with every fault of recipe, models and data at once."""
    faults = recipe_faults(recipe, named_models(recipe))
    sets = None
    try:
        sets = load_sets(recipe.data, recipe.seed)
    except FlatGDError as error:
        faults.append(str(error))
    else:
        faults += data_faults(recipe, sets)
    if faults or sets is None:
        raise RecipeError("\n".join(faults))
    return sets


def check_offline(recipe: Recipe) -> list[str]:
    """Check what needs no network. Returns one line for each thing that could not be checked.

    Skips models that are neither folders nor in the hub's cache, and data files that are not there.
    If all files are there, it checks the sets as `load_validated` does.
    """
    models = named_models(recipe)
    data = recipe.data
    sources = [*data.policy, *data.judge, *data.test, *data.eval]
    absent = [source for source in sources if source.format != "hub" and not source.file.exists()]
    if not absent and all(is_at_hand(name) for name in models.values()):
        load_validated(recipe)
        return []
    here = {r: name for r, name in models.items() if is_at_hand(name) or not is_hub_name(name)}
    faults = recipe_faults(recipe, here)
    try:
        if absent:
            for source in sources:
                if source not in absent:
                    load_source(source)
        else:
            faults += data_faults(recipe, load_sets(data, recipe.seed))
    except FlatGDError as error:
        faults.append(str(error))
    if faults:
        raise RecipeError("\n".join(faults))
    skipped = [f"{role}: {name} (on the hub)" for role, name in models.items() if role not in here]
    paths = dict.fromkeys(f"data: {s.path} (not here{fetch_hint(s.format)})" for s in absent)
    return [*skipped, *paths]


def training_example(recipe: Recipe, policy: Sequence[Dialogue]) -> tuple[DialogueFormat, Example]:
    """A safe policy row as the backbone reads it. Turns that the data do not label safe are
    masked."""
    row = next(row for row in policy if row.is_safe)
    *texts, reply = TextMask(policy).apply(row)
    history = tuple(turn._replace(text=text) for turn, text in zip(row.history, texts, strict=True))
    name = recipe.backbone
    dialogue_format = format_for(load_config(name), load_tokenizer(name), *recipe.layout)
    return dialogue_format, dialogue_format.encode(replace(row, history=history, reply=reply))
