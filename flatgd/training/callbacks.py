"""Callbacks of every training: stop on a signal with a checkpoint, and warn about odd figures."""

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

LOSSES_COMPARED = 50  # the last losses, with which a new one is compared
MIN_LOSSES = 20  # before the first comparison
SPIKE = 10  # a loss this many median deviations above the median is a spike
SHARES = (0.01, 3.0)  # the normal range of the penalty's share, if lambda is fixed
logger = logging.getLogger(__name__)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop(TrainerCallback):
    """Ends the training after the step in which SIGTERM or Ctrl-C arrives. A second signal ends it
    at once."""

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.received = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside the block, if it runs in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.accelerator.num_processes > 1:  # all processes stop after the same step
            self.received = largest(self.accelerator, self.received)
        if self.received:
            control.should_save = control.should_training_stop = True


class Watch(TrainerCallback):
    """Warns about a loss that jumps, and about a penalty that is negligible or dominates. Once
    each."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=LOSSES_COMPARED)
        self.warned: set[str] = set()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        if "loss" in logs:
            self._spike(state.global_step, float(logs["loss"]))
        if args.flatness_weight and "penalty_share" in logs:
            self._share(state.global_step, float(logs["penalty_share"]), args.flatness_weight)

    def _spike(self, step: int, loss: float) -> None:
        if len(self.losses) >= MIN_LOSSES:
            middle = statistics.median(self.losses)
            spread = statistics.median(abs(value - middle) for value in self.losses)
            if loss - middle > SPIKE * max(spread, 1e-3 * abs(middle)):
                self._warn_once(
                    "spike",
                    f"step {step}: the loss is {loss:.3g}, after about {middle:.3g} before; if it "
                    "does not recover, lower learning_rate or max_grad_norm",
                )
        self.losses.append(loss)

    def _share(self, step: int, share: float, weight: float) -> None:
        low, high = SHARES
        if not low <= share <= high:
            way = "lower" if share > high else "raise"
            self._warn_once(
                "share",
                f"step {step}: the penalty's gradient has {share:.2g} times the norm of the rest; "
                f"{way} flatness_weight (now {weight:g}), or set penalty_share: 0.3 instead",
            )

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning(text)
