"""A finished run is not reported, pushed or exported as what it is not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.hostile_runs import CASES

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "attempt"), CASES, ids=[name for name, _ in CASES])
def test_it_holds(name: str, attempt: Callable[[Path], str | None], tmp_path: Path) -> None:
    assert attempt(tmp_path) is None
