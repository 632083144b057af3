"""The Trainer callback that moves progress bars."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class Advance(TrainerCallback):
    """Moves a progress bar: first by the steps of the checkpoint, then step by step."""

    def __init__(self, advance: Callable[[int], None]):
        self.advance = advance

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.advance(1)
