"""SIGTERM and Ctrl-C end a training after its step, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from flatgd.training.reduction import largest

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop(TrainerCallback):
    """Ends the training after the step in which a signal came; a second one ends it at once."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.received = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are heard inside the block, if it is the main thread's."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.accelerator.num_processes > 1:  # all stop after the same step
            self.received = largest(self.accelerator, self.received)
        if self.received:
            control.should_save = control.should_training_stop = True
