"""The steps of a run: which are done, and how long the rest takes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

State = Literal["waiting", "running", "done", "reused", "failed"]


@dataclass
class Step:
    """One part of a run. `kind` names what costs about the same; `work` does it."""

    kind: str
    label: str
    work: Callable[[], object]
    state: State = "waiting"
    seconds: float = 0.0


class TimeLeft(NamedTuple):
    """`seconds` are those of the kinds measured so far; `unmeasured` names the other kinds."""

    seconds: float
    unmeasured: list[str]


class Progress:
    """Runs the steps in order. `on_change` is told of every change, and at most every `interval`
    seconds within a step."""

    def __init__(
        self,
        steps: Sequence[Step],
        on_change: Callable[["Progress"], object] = lambda _: None,
        interval: float = 5.0,
        now: Callable[[], float] = time.monotonic,
    ):
        self.steps, self.on_change = list(steps), on_change
        self.done, self.total, self.unit = 0, 0, ""  # of the running step's bar
        self._interval, self._now = interval, now
        self._started = self._told = now()
        self._has_worked = False

    def run(self) -> None:
        """Every step. One that shows no progress of its own was reused: its work was there."""
        for step in self.steps:
            self._begin(step)
            try:
                step.work()
            except BaseException:
                step.state = "failed"
                self._tell()
                raise
            step.seconds = self._now() - self._started
            step.state = "done" if self._has_worked else "reused"
        self._tell()

    def advanced(self, unit: str, done: int, total: int) -> None:
        """The running step has done `done` of `total`."""
        self.done, self.total, self.unit = done, total, unit
        self._has_worked = True
        if self._now() - self._told >= self._interval:
            self._tell()

    def time_left(self) -> TimeLeft:
        """Each step takes as long as the mean of its kind has taken, or as the running one will."""
        expected: dict[str, float] = {}
        for kind in {step.kind for step in self.steps}:
            own = [s.seconds for s in self.steps if s.kind == kind and s.state == "done"]
            if own:
                expected[kind] = sum(own) / len(own)
        elapsed = self._now() - self._started
        seconds, unmeasured = 0.0, []
        for step in self.steps:
            if step.state == "running":
                if step.kind not in expected and self.done:
                    expected[step.kind] = elapsed * self.total / self.done
                seconds -= min(elapsed, expected.get(step.kind, 0.0))
            if step.state in ("running", "waiting"):
                if step.kind in expected:
                    seconds += expected[step.kind]
                else:
                    unmeasured.append(step.kind)
        return TimeLeft(seconds, list(dict.fromkeys(unmeasured)))

    def _begin(self, step: Step) -> None:
        step.state = "running"
        self.done, self.total, self._has_worked = 0, 0, False
        self._started = self._now()
        self._tell()

    def _tell(self) -> None:
        self._told = self._now()
        self.on_change(self)
