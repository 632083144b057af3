"""The steps of a run, the time that is left, and the page that shows them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flatgd.report.progress import write_progress
from flatgd.runtime.steps import Progress, Step


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def working(clock: Clock, seconds: float) -> Callable[[], None]:
    def work() -> None:
        for done in range(1, 5):
            clock.now += seconds / 4
            progress.advanced("rows", done, 4)

    return work


progress: Progress


def test_time_left_is_that_of_finished_steps_of_the_kind() -> None:
    global progress
    clock = Clock()
    seen: list[tuple[float, list[str]]] = []

    def look(now: Progress) -> None:
        seen.append((round(now.time_left().seconds, 1), now.time_left().unmeasured))

    steps = [
        Step("training", "train a", lambda: None),
        Step("training", "train b", working(clock, 40.0)),
        Step("training", "train c", working(clock, 40.0)),
        Step("scoring", "score a", working(clock, 8.0)),
    ]
    progress = Progress(steps, look, now=clock)
    progress.run()
    assert [step.state for step in steps] == ["reused", "done", "done", "done"]
    assert seen[1] == (0.0, ["training", "scoring"])  # a reused step says nothing of the time
    assert seen[2] == (70.0, ["scoring"])  # a quarter of b done in ten seconds, and no c
    assert (40.0, ["scoring"]) in seen  # c begins
    assert seen[-1] == (0.0, [])


def test_a_failed_step_is_told() -> None:
    def fail() -> None:
        raise ValueError("no")

    told: list[str] = []
    run = Progress([Step("x", "x", fail)], lambda p: told.append(p.steps[0].state))
    with pytest.raises(ValueError, match="no"):
        run.run()
    assert told == ["running", "failed"]


def test_the_page_of_a_run_that_is_going(tmp_path: Path) -> None:
    recipe: Any = SimpleNamespace(name="<b>mine</b>", output=tmp_path)
    texts: list[str] = []

    def keep(now: Progress) -> None:
        texts.append(write_progress(recipe, now).read_text())

    def fail() -> None:
        raise ValueError("no")

    now = Progress([Step("a", "train a", lambda: None), Step("b", "train b", fail)], keep)
    with pytest.raises(ValueError, match="no"):
        now.run()
    assert "0 of 2 steps finished, time left is not known until a and b" in texts[0]
    assert 'http-equiv="refresh"' in texts[0]
    assert "1 of 2 steps finished" in texts[1]
    assert "This run stopped" in texts[-1]
    assert 'http-equiv="refresh"' not in texts[-1]
    assert "<b>mine" not in texts[0]
