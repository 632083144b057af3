"""SIGTERM and Ctrl-C end a training after its step, with a checkpoint."""

import logging
import signal
import statistics
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from transformers import TrainerCallback

from flatgd.training.gradient_reduction import largest

SEEN = 50  # steps that a loss is compared with
FEWEST = 20
TIMES = 10  # a spike is so many times the median distance from the median
SHARES = (0.01, 3.0)  # of the penalty's gradient, where lambda is fixed
logger = logging.getLogger(__name__)


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


class Watch(TrainerCallback):
    """A loss that jumps; a penalty that is nothing, or drowns the rest. Told once each."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=SEEN)
        self.told: set[str] = set()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._spike(state.global_step, float(logs["loss"]))
        if args.flatness_weight and "penalty_share" in logs:
            self._share(state.global_step, float(logs["penalty_share"]), args.flatness_weight)

    def _spike(self, step: int, loss: float) -> None:
        if len(self.losses) >= FEWEST:
            middle = statistics.median(self.losses)
            spread = statistics.median(abs(value - middle) for value in self.losses)
            if loss - middle > TIMES * max(spread, 1e-3 * abs(middle)):
                self._tell(
                    "spike",
                    f"step {step}: loss {loss:.3g}, where it was about {middle:.3g} before; if it "
                    "does not come back, lower learning_rate or max_grad_norm",
                )
        self.losses.append(loss)

    def _share(self, step: int, share: float, weight: float) -> None:
        low, high = SHARES
        if not low <= share <= high:
            way = "lower" if share > high else "raise"
            self._tell(
                "share",
                f"step {step}: the penalty's gradient is {share:.2g} times the rest's; {way} "
                f"flatness_weight (now {weight:g}), or give penalty_share: 0.3 instead",
            )

    def _tell(self, what: str, text: str) -> None:
        if what not in self.told:
            self.told.add(what)
            logger.warning(text)
