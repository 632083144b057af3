"""Load the models and the judge of a chat: checkpoints of a run, or any other checkpoints."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from flatgd.artifacts import layout
from flatgd.chat.session import JudgeFunction, ReplyFunction
from flatgd.config.loading import load_recipe
from flatgd.config.recipe import Generate, Recipe
from flatgd.config.section import SHIPPED, shipped
from flatgd.dialogue import Dialogue, before
from flatgd.errors import UnsupportedError, UsageError
from flatgd.judges.registry import load_judge
from flatgd.methods import METHODS, Director, ExpertGuide
from flatgd.models.adapters import load
from flatgd.models.dialogue_format import format_for
from flatgd.models.loading import load_config, load_tokenizer, on_device, quiet_transformers
from flatgd.models.speaker import Speaker

GUIDED = (Director, ExpertGuide)


class ChatModels(NamedTuple):
    """The models of a chat, by name, and the judge of their replies."""

    models: dict[str, ReplyFunction]
    judge: JudgeFunction | None


def load_chat_models(checkpoints: Sequence[str]) -> ChatModels:
    """Load checkpoints from folders or by their hub names.

    A checkpoint of a run uses the chat format and the sampling settings of its recipe. Others are
    sampled from as the first such run says, so that they compare. The judge is the first judge of
    that run. `demo:NAME` ships with flatgd. Raises ModelError, UnsupportedError, UsageError.
    """
    quiet_transformers()
    checkpoints = [str(shipped(c)) if c.startswith(SHIPPED) else c for c in checkpoints]
    if runs := [name for name in checkpoints if (Path(name) / layout.RECIPE).exists()]:
        raise UsageError(
            f"{runs[0]} is a run, not a model. Choose a model in it, for example "
            f"{Path(runs[0]) / layout.model('flatgd')}"
        )
    roots = [layout.find_run(Path(name)) if Path(name).is_dir() else None for name in checkpoints]
    recipes = [load_recipe(root / layout.RECIPE) if root else None for root in roots]
    names = [Path(c).name if Path(c).is_dir() else c for c in checkpoints]
    shown = names if len(set(names)) == len(names) else list(checkpoints)
    if len(set(shown)) < len(shown):
        raise UsageError("A checkpoint is given twice; give each one once.")
    sampling = next((recipe.generate for recipe in recipes if recipe), Generate())
    models = {
        name: _reply_function(checkpoint, recipe, recipe.generate if recipe else sampling)
        for name, checkpoint, recipe in zip(shown, checkpoints, recipes, strict=True)
    }
    judges = (_judge(root, recipe) for root, recipe in zip(roots, recipes, strict=True))
    return ChatModels(models, next(filter(None, judges), None))


def _reply_function(checkpoint: str, recipe: Recipe | None, sampling: Generate) -> ReplyFunction:
    name = Path(checkpoint).name
    checkpoint = (recipe and recipe.checkpoint_of(name)) or checkpoint
    if recipe and name in recipe.methods and issubclass(METHODS[recipe.kind_of(name)], GUIDED):
        raise UnsupportedError(
            f"{name} generates with the help of other models, which `flatgd chat` does not load; "
            "chat with another model"
        )
    chat_layout = recipe.layout if recipe else ()
    dialogue_format = format_for(load_config(checkpoint), load_tokenizer(checkpoint), *chat_layout)
    speaker = Speaker(on_device(load(checkpoint)), dialogue_format)

    def reply(history: Sequence[str], samples: int, seed: int) -> list[str]:
        row = Dialogue(before(history), "", None, "chat", "")
        settings = sampling.model_copy(update={"samples": samples})
        return speaker.generate([row], settings, seed).texts[0]

    return reply


def _judge(root: Path | None, recipe: Recipe | None) -> JudgeFunction | None:
    """A run's first judge, None if it is not trained yet."""
    if root is None or recipe is None:
        return None
    settings = recipe.judges[0]
    folder = root / layout.judge(settings.label)
    if not folder.exists():
        return None
    judge = load_judge(settings, folder)
    return lambda pairs: [float(probability) for probability in judge.score(pairs)]
