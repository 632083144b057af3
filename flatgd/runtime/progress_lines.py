"""The progress of one long part as lines of text, for outputs where no bar can be drawn."""

from collections import deque
from collections.abc import Callable
from typing import Protocol

INTERVAL = 30.0  # seconds between two lines
WINDOW = 10  # lines over which the rate is measured


class ProgressLines:
    """One line every 30 seconds: what is done, how fast, how long it will still take.

    There is no thread: a line is written when something is done and the last line is 30 seconds
    old, so a part that takes less than that writes none. The rate is that of the last ten lines. It
    starts at the first update, so what an interrupted run had done before it resumed is no part of
    it.
    """

    def __init__(
        self, amounts: "Amounts", write: Callable[[str], None], clock: Callable[[], float]
    ):
        self._amounts, self._write, self._clock = amounts, write, clock
        self._written = clock()
        self._done = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # (time, done)

    def update(self, done: int, total: int | None) -> None:
        """`done` of `total` are done; the total is None if unknown."""
        now = self._clock()
        if done < self._done:  # a download began again
            self._marks.clear()
        self._done = done
        if not self._marks:
            self._marks.append((now, done))
        if now - self._written >= INTERVAL:
            self._write(self._line(now, done, total))
            self._written = now
            if now > self._marks[-1][0]:
                self._marks.append((now, done))

    def _line(self, now: float, done: int, total: int | None) -> str:
        total = max(done, total) if total is not None else None  # totals of steps are estimates
        parts = [self._amounts.done(done, total)]
        since, before = self._marks[0]
        if done > before and now > since:
            rate = (done - before) / (now - since)
            parts.append(self._amounts.rate(rate))
            if total is not None:
                parts.append(f"{clock((total - done) / rate)} left")
        return ", ".join(parts)


class Amounts(Protocol):
    """How amounts of something are written."""

    def done(self, done: int, total: int | None) -> str:
        """What is done, of what total."""

    def rate(self, a_second: float) -> str:
        """How much is done in a time."""


class Items:
    """Steps, replies and so on: `120/400 steps`, `1.3/s`."""

    def __init__(self, unit: str):
        self.unit = unit

    def done(self, done: int, total: int | None) -> str:
        return f"{done:,}/{total:,} {self.unit}" if total is not None else f"{done:,} {self.unit}"

    def rate(self, a_second: float) -> str:
        if a_second >= 1:
            return f"{a_second:,.1f}/s"
        a_minute = a_second * 60
        return f"{a_minute:,.1f}/min" if a_minute >= 1 else f"{a_minute * 60:,.1f}/h"


class Bytes:
    """Downloads: `12.5/80.0 MB`, `1.3 MB/s`."""

    def done(self, done: int, total: int | None) -> str:
        of = f"/{total / 1e6:,.1f}" if total is not None else ""
        return f"{done / 1e6:,.1f}{of} MB"

    def rate(self, a_second: float) -> str:
        return f"{a_second / 1e6:,.2f} MB/s"


def clock(seconds: float) -> str:
    """Minutes and seconds; from an hour on, hours too.

    >>> clock(215.4), clock(3815)
    ('3:35', '1:03:35')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
