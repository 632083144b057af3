"""What attackers and accidents try, case by case, each in an empty folder of its own."""

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.table import NotTriedError

FILES = ("store", "runs", "recipes", "models", "data", "pages")


def cases() -> list[tuple[str, Callable[[Path], str | None]]]:
    """(name, function) of every case; the function returns what broke, or None."""
    return [
        (f"{name}: {title}", case)
        for name in FILES
        for title, case in import_module(f"benchmarks.hostile_{name}").CASES
    ]


def hostile(place: Path, times: int) -> tuple[int, int]:
    """Try every case; print each. Returns how many were tried and how many held."""
    held = tried = 0
    for title, case in cases():
        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                broke = case(Path(folder))
            except NotTriedError as error:
                print(f"-----  {title}: not tried, {error}")
                continue
            except Exception as error:  # a case must not end the others
                broke = f"{type(error).__name__}: {error}"
        tried += 1
        held += broke is None
        print(f"{'held ' if broke is None else 'BROKE'}  {title}{f': {broke}' if broke else ''}")
    return tried, held
