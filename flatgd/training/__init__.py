"""Training: FlatGDTrainer and FlatGDConfig on transformers.Trainer and TrainingArguments."""

from flatgd.training.config import FlatGDConfig
from flatgd.training.flatness_mixin import FlatnessMixin
from flatgd.training.trainer import FlatGDTrainer

__all__ = ["FlatGDConfig", "FlatGDTrainer", "FlatnessMixin"]
