"""The models and the judge of a chat: checkpoints of a run with its settings, or any others."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flatgd.artifacts import layout
from flatgd.chat.session import Judges, Speaks
from flatgd.config.loading import load_recipe
from flatgd.config.recipe import Generate, Recipe
from flatgd.dialogue import Dialogue, before
from flatgd.errors import RecipeError, UnsupportedError
from flatgd.judges.registry import load_judge
from flatgd.methods import METHODS, Director, ExpertGuide
from flatgd.models.adapters import load
from flatgd.models.dialogue_format import format_for
from flatgd.models.loading import load_config, load_tokenizer, on_device
from flatgd.models.speaker import Speaker

GUIDED = (Director, ExpertGuide)


class Talkers(NamedTuple):
    """Who speaks, and who judges them."""

    speakers: dict[str, Speaks]
    judge: Judges | None


def load_talkers(checkpoints: Sequence[str]) -> Talkers:
    """Folders or hub names. A checkpoint of a run answers as it did there: the same layout and
    sampling; the first one's run gives the judge. Raises ModelError, RecipeError."""
    if runs := [name for name in checkpoints if (Path(name) / layout.RECIPE).exists()]:
        raise RecipeError(f"{runs[0]} is a whole run; name a model in it, as methods/flatgd")
    roots = [layout.find_run(Path(name)) if Path(name).is_dir() else None for name in checkpoints]
    recipes = [load_recipe(root / layout.RECIPE) if root else None for root in roots]
    names = [Path(c).name if Path(c).is_dir() else c for c in checkpoints]
    shown = names if len(set(names)) == len(names) else list(checkpoints)
    if len(set(shown)) < len(shown):
        raise RecipeError("the same checkpoint twice; name each once")
    speakers = {
        name: _speaker(checkpoint, recipe)
        for name, checkpoint, recipe in zip(shown, checkpoints, recipes, strict=True)
    }
    judges = (_judge(root, recipe) for root, recipe in zip(roots, recipes, strict=True))
    return Talkers(speakers, next(filter(None, judges), None))


def _speaker(checkpoint: str, recipe: Recipe | None) -> Speaks:
    name = Path(checkpoint).name
    if recipe and name in recipe.methods and issubclass(METHODS[recipe.kind_of(name)], GUIDED):
        raise UnsupportedError(
            f"{name} speaks with other models beside it, which chat does not load; leave it out"
        )
    layout = recipe.layout if recipe else ()
    dialogue_format = format_for(load_config(checkpoint), load_tokenizer(checkpoint), *layout)
    speaker = Speaker(on_device(load(checkpoint)), dialogue_format)
    sampling = recipe.generate if recipe else Generate()

    def speak(history: Sequence[str], samples: int, seed: int) -> list[str]:
        row = Dialogue(before(history), "", None, "chat", "")
        settings = sampling.model_copy(update={"samples": samples})
        return speaker.generate([row], settings, seed).texts[0]

    return speak


def _judge(root: Path | None, recipe: Recipe | None) -> Judges | None:
    """A run's first judge."""
    if root is None or recipe is None:
        return None
    settings = recipe.judges[0]
    folder = root / layout.judge(settings.label)
    if not folder.exists():
        return None
    judge = load_judge(settings, folder)
    return lambda pairs: [float(chance) for chance in judge.score(pairs)]
