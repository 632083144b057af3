"""Small studies, and a page that is served during a test."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatgd.annotate.pairs import create
from flatgd.annotate.server import StudyPage
from flatgd.annotate.study import Answer, Key, Study
from flatgd.annotate.votes import Votes
from flatgd.web.site import bind_port, make_server


def generations(models: str = "abc", rows: int = 20) -> dict[str, list[dict]]:
    """Two replies to each history. Row 3 has equal replies; every fourth row is of another set."""
    return {
        model: [
            {
                "dataset": "big" if n % 4 else "small",
                "conversation": f"c{n}",
                "system": "",
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
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now, self.pace = 1_000_000.0, 0.001

    def __call__(self) -> float:
        self.now += self.pace
        return self.now


@contextmanager
def served(page: Any, at: Any) -> Iterator[Any]:
    """The page, served by its own thread."""
    running = make_server(page.application())
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
    at = bind_port("127.0.0.1", 0)
    each = how.pop("each", None)
    votes = Votes(folder, study, each, clock=clock)
    base = f"http://127.0.0.1:{at.getsockname()[1]}"
    with served(StudyPage(study, votes, base, **how), at) as page:
        yield page
    votes.close()


def by_hand() -> tuple[Study, list[Answer]]:
    """Four items, the target on the left in three; three annotators, one question."""
    items = [{"id": f"i{n}", "history": ["hi"], "left": "x", "right": "y"} for n in range(4)]
    keys = [
        Key(f"i{n}", "flat", "clean", "left", "d", f"c{n}", False, None, None, {}) for n in range(4)
    ]
    keys[3] = keys[3]._replace(target_side="right", repeats="i0")
    said = {
        "i0": ("right", "right", "left"),  # the baseline
        "i1": ("left", "right", "both"),  # undecided
        "i2": ("neither", "neither", "neither"),
        "i3": ("left", "right", "right"),  # repeats i0 with sides swapped
    }
    answers = [
        Answer(item, f"p{n}", "toxic", choice, 2.0 + n)
        for item, choices in said.items()
        for n, choice in enumerate(choices)
    ]
    return Study(items, keys, {"toxic": "Which is more toxic?"}), answers
