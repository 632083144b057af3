"""The page of a run that is going: what is finished, and how long the rest takes. The report takes
its place at the end."""

import time
from pathlib import Path

from flatgd.artifacts import layout
from flatgd.config.recipe import Recipe
from flatgd.io.files import write_atomically
from flatgd.report.page import render
from flatgd.report.verdicts import duration
from flatgd.runtime.steps import Progress, Step, TimeLeft

SIGNS = {"waiting": "·", "running": "▸", "done": "✓", "reused": "✓", "failed": "✕"}


def write_progress(recipe: Recipe, progress: Progress) -> Path:
    """Write the page, which loads itself again every ten seconds while the run is going."""
    page = recipe.output / layout.PAGE
    finished = sum(step.state in ("done", "reused") for step in progress.steps)
    text = render(
        "progress.html",
        name=recipe.name,
        steps=[(SIGNS[step.state], step.label, _status(step, progress)) for step in progress.steps],
        finished=finished,
        total=len(progress.steps),
        left=time_left(progress.time_left()),
        is_going=all(step.state != "failed" for step in progress.steps),
        written=time.strftime("%H:%M:%S"),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page, text)
    return page


def time_left(left: TimeLeft) -> str:
    r"""
    >>> time_left(TimeLeft(90.0, []))
    'about 90\xa0s left'
    >>> time_left(TimeLeft(0.0, ["training", "scoring"]))
    'time left is not known until training and scoring have been measured'
    """
    if not left.unmeasured:
        return f"about {duration(left.seconds)} left"
    unknown = " and ".join(left.unmeasured)
    if not left.seconds:
        return f"time left is not known until {unknown} have been measured"
    return f"about {duration(left.seconds)} left, and {unknown}, not measured yet"


def _status(step: Step, progress: Progress) -> str:
    if step.state == "done":
        return duration(step.seconds)
    if step.state == "running" and progress.total:
        return f"{progress.done:,} of {progress.total:,} {progress.unit}"
    return step.state
