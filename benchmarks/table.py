"""Shared parts of the benchmarks: interleaved repeats, a table of targets, an exit code."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

DEMO = Path(__file__).parent.parent / "flatgd/demo"


class NotTriedError(Exception):
    """A case that cannot be tried on this machine."""


def options(about: str | None) -> argparse.ArgumentParser:
    """An argument parser whose help is the benchmark's docstring."""
    return argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )


class Target(NamedTuple):
    """A measured value and its upper limit, or lower limit with `at_least`."""

    what: str
    value: float
    limit: float
    at_least: bool = False

    def is_met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


class Timed(NamedTuple):
    """Seconds of each round, without the first."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, other: "Timed") -> float:
        """The median of the ratios between rounds."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Timed]:
    """Time each run. They take turns, so that a slow period affects all of them equally."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return {name: Timed(taken[1:]) for name, taken in seconds.items()}


def machine() -> str:
    """The machine and versions of the measurement."""
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {torch.get_num_threads()} threads{card}; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def conclude(targets: list[Target]) -> int:
    """Print each target with its measured value. Returns 1 if one is missed."""
    print()
    width = max(len(target.what) for target in targets)
    for target in targets:
        sign = ">=" if target.at_least else "<="
        verdict = "met" if target.is_met() else "MISSED"
        print(f"{target.what:<{width}}  {target.value:8.3f}  {sign} {target.limit:<6g} {verdict}")
    return 0 if all(target.is_met() for target in targets) else 1
