"""What a checkpoint was trained with, as it says itself: a recipe may have changed since."""

import json
from typing import Any

from flatgd.errors import RecipeError
from flatgd.recipe import Recipe

SETTINGS = "flatgd.json"  # in a checkpoint's folder
PRESET = "set by the method"  # in it: fields that the method's kind put in place of the recipe's


def trained_with(recipe: Recipe, method: str) -> dict[str, Any]:
    """The settings of a trained method. Raises RecipeError where the recipe says otherwise."""
    path = recipe.output / f"methods/{method}" / SETTINGS
    if not path.exists():
        raise RecipeError(f"{method} is not trained yet; `flatgd run` trains it")
    found: dict[str, Any] = json.loads(path.read_text())
    preset = found.pop(PRESET, {})
    wanted = json.loads(json.dumps(recipe.settings(method)))
    for key in found.keys() | wanted.keys():
        if found.get(key) != wanted.get(key):
            raise RecipeError(
                f"{method} was trained with {key} {found.get(key)}, the recipe says "
                f"{wanted.get(key)}; give the same --set as to `flatgd run`, or run it again"
            )
    return {key: value for key, value in (found | preset).items() if value is not None}
