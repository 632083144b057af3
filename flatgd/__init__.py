"""flatgd: fine-tune a dialogue model so that it gives fewer toxic replies, without making it dull.

Names are loaded when first used, so that `import flatgd` and the command line stay quick.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatgd.data.jsonl import load_jsonl, load_rows
    from flatgd.dialogue import Dialogue
    from flatgd.methods import Clean, FlatGD, SafetyLoss
    from flatgd.models.loading import load_model, load_tokenizer
    from flatgd.training import FlatGDConfig, FlatGDTrainer, FlatnessMixin

_HOMES = {
    "Clean": "flatgd.methods",
    "Dialogue": "flatgd.dialogue",
    "FlatGD": "flatgd.methods",
    "FlatGDConfig": "flatgd.training",
    "FlatGDTrainer": "flatgd.training",
    "FlatnessMixin": "flatgd.training",
    "SafetyLoss": "flatgd.methods",
    "load_jsonl": "flatgd.data.jsonl",
    "load_model": "flatgd.models.loading",
    "load_rows": "flatgd.data.jsonl",
    "load_tokenizer": "flatgd.models.loading",
}

__all__ = [
    "Clean",
    "Dialogue",
    "FlatGD",
    "FlatGDConfig",
    "FlatGDTrainer",
    "FlatnessMixin",
    "SafetyLoss",
    "load_jsonl",
    "load_model",
    "load_rows",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("flatgd")
    if name not in _HOMES:
        raise AttributeError(f"module 'flatgd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
