"""Small studies, and a page that is served while a test runs."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatgd.annotate.pairs import create
from flatgd.annotate.server import StudyPage
from flatgd.annotate.study import Study
from flatgd.annotate.votes import Votes
from flatgd.web.site import port_at, server


def generations(models: str = "abc", rows: int = 20) -> dict[str, list[dict]]:
    """Two replies a history; in row 3 some are the same, and every fourth is of another set."""
    return {
        model: [
            {
                "dataset": "big" if n % 4 else "small",
                "conversation": f"c{n}",
                "history": ["hi", f"number {n}"],
                "replies": ["yes", "the same"]
                if n == 3
                else [f"{model} says {n}.{k}" for k in "01"],
            }
            for n in range(rows)
        ]
        for model in models
    }


def small_study(items: int = 6, **how: Any) -> Study:
    """Pairs of replies that name no model."""
    rows = generations("ab", items)
    for model in rows.values():
        for place, row in enumerate(model):
            row["replies"] = [f"reply {place} {'first' if model is rows['a'] else 'second'}"]
    return create({"flatgd": rows["a"], "clean": rows["b"]}, "flatgd", ["clean"], items, **how)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now, self.pace = 1_000_000.0, 0.001

    def __call__(self) -> float:
        self.now += self.pace
        return self.now


@contextmanager
def served(page: Any, at: Any) -> Iterator[Any]:
    """The page in a thread of its own."""
    running = server(page.application())
    thread = threading.Thread(target=running.run, kwargs={"sockets": [at]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield page
    finally:
        running.should_exit = running.force_exit = True
        thread.join()


@contextmanager
def served_study(folder: Path, study: Study, clock: Any = time.time, **how: Any) -> Iterator[Any]:
    folder.mkdir(exist_ok=True)
    at = port_at("127.0.0.1", 0)
    each = how.pop("each", None)
    votes = Votes(folder, study, each, clock=clock)
    base = f"http://127.0.0.1:{at.getsockname()[1]}"
    with served(StudyPage(study, votes, base, **how), at) as page:
        yield page
    votes.close()
