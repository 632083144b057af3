"""Everything flatgd raises on purpose.

    FlatGDError
    ├── UsageError          a command: its arguments, or a folder it cannot use
    ├── RecipeError         the recipe: unknown key, wrong type, contradiction
    ├── DataError           a data file: every bad line as file:line: reason
    ├── ModelError          a model or tokenizer that does not fit
    ├── UnsupportedError    a combination that cannot work, with a way out
    ├── NonFiniteError      NaN or infinity in a loss, a gradient or weights
    ├── CheckpointError     a checkpoint that is corrupted, of another training or cannot be written
    ├── InUseError          another process uses the output folder
    ├── MemoryLimitError    no room for one row
    └── StoppedError        SIGTERM or Ctrl-C, after a checkpoint

A message says what was expected, what came, and what to do next.
"""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

MOST_NAMED = 40  # keys that a message lists


class FlatGDError(Exception):
    """Base class; the command line prints its message and no traceback."""


class UsageError(FlatGDError):
    """A command cannot be carried out: an argument, or the state of a folder."""


class RecipeError(FlatGDError):
    """The recipe cannot be run as written."""


class ModelError(FlatGDError):
    """A model or a tokenizer does not fit its place."""


class UnsupportedError(FlatGDError):
    """This combination of settings cannot work."""


class NonFiniteError(FlatGDError):
    """A loss or a gradient is NaN or infinite."""


class CheckpointError(FlatGDError):
    """A checkpoint cannot be written, or a training cannot resume from it."""


class InUseError(FlatGDError):
    """Two processes cannot work in one output folder."""


class MemoryLimitError(FlatGDError):
    """The device has no memory for a step, however it is split."""


class StoppedError(FlatGDError):
    """A signal ended a training after a checkpoint; `code` is the process's exit code for it."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.code = 128 + number


class Problem(NamedTuple):
    """One fault at one place of a file; `line` counts from 1, 0 means the whole file."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}" if self.line else self.path
        return f"{place}: {self.reason}"


class DataError(FlatGDError):
    """A data file has faults; all of them are in `problems`.

    >>> print(DataError([Problem("a.jsonl", 3, "no reply")]))
    1 problem in the data:
      a.jsonl:3: no reply
    """

    SHOWN = 20

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = len(self.problems)
        lines = [f"{count} problem{'s' if count != 1 else ''} in the data:"]
        alike: dict[tuple[str, str], list[Problem]] = {}
        for problem in self.problems:
            alike.setdefault((problem.path, problem.reason), []).append(problem)
        for first, *others in list(alike.values())[: self.SHOWN]:
            more = f" (and on {len(others):,} more lines)" if others else ""
            lines.append(f"  {first}{more}")
        if len(alike) > self.SHOWN:
            lines.append(f"  ... and {len(alike) - self.SHOWN} other reasons")
        super().__init__("\n".join(lines))


def nearest(name: str, known: list[str]) -> str:
    """
    >>> nearest("sede", ["seed", "train"])
    "; did you mean 'seed'?"
    """
    if close := difflib.get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}?"
    is_short = len(known) <= MOST_NAMED
    return f"; the keys are {', '.join(known)}" if is_short else "; docs/options.md lists the keys"
