"""Cores that torch's threads lack: quotas, affinity, several processes, other programs."""

import os
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from flatgd.cli.main import app
from flatgd.config.loading import load_recipe
from flatgd.pipeline.pipeline import Pipeline
from flatgd.runtime import distributed, threads
from flatgd.runtime.display import Display
from flatgd.runtime.threads import (
    MOMENT_S,
    Room,
    allowed_cores,
    busy_seconds,
    measure,
    quota,
    shortage,
    warning,
)

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


@pytest.mark.parametrize(
    ("count", "processes", "space", "found"),
    [
        (4, 1, Room(4, 4), None),
        (4, 1, Room(4, 64, 4.0), None),
        (2, 1, Room(8, 8, 1.5), None),  # one core and a half keep two threads busy
        (1, 2, Room(2, 2), None),
        (2, 1, Room(2, 2, None, 0.4), None),  # as much as a desktop takes
        (16, 1, Room(16, 16, None, 1.5), None),  # less than a tenth of the cores
        (8, 1, Room(16, 16, None, 7.0), None),
        (
            64,
            1,
            Room(64, 64, 4.0),
            "torch computes with 64 threads on 4 of 64 cores (cgroup quota); a step can take many "
            "times as long. Set OMP_NUM_THREADS=4",
        ),
        (
            8,
            1,
            Room(2, 8),
            "torch computes with 8 threads on 2 of 8 cores (CPU affinity); a step can take many "
            "times as long. Set OMP_NUM_THREADS=2",
        ),
        (
            4,
            1,
            Room(4, 8, 1.5),
            "torch computes with 4 threads on 1.5 of 8 cores (cgroup quota); a step can take many "
            "times as long. Set OMP_NUM_THREADS=1",
        ),
        (
            2,
            1,
            Room(1, 1, 0.5),
            "torch computes with 2 threads on 0.5 of 1 core (cgroup quota); a step can take many "
            "times as long. Set OMP_NUM_THREADS=1",
        ),
        (
            2,
            2,
            Room(2, 2),
            "2 processes compute with 2 threads each on 2 cores; a step can take many times as "
            "long. Set OMP_NUM_THREADS=1",
        ),
        (
            4,
            4,
            Room(8, 8),
            "4 processes compute with 4 threads each on 8 cores; a step can take many times as "
            "long. Set OMP_NUM_THREADS=2",
        ),
        (
            1,
            4,
            Room(2, 2),
            "4 processes compute with 1 thread each on 2 cores; a step can take many times as "
            "long. Start no more than 2 processes",
        ),
        (
            2,
            4,
            Room(8, 8, 1.0),
            "4 processes compute with 2 threads each on 1 of 8 cores (cgroup quota); a step can "
            "take many times as long. Start no more than 1 process, and set OMP_NUM_THREADS=1",
        ),
        (
            2,
            1,
            Room(2, 2, None, 0.96),
            "other programs keep 1.0 of 2 cores busy, and torch computes with 2 threads; a step "
            "can take many times as long. Wait until they have ended, or set OMP_NUM_THREADS=1",
        ),
        (
            1,
            1,
            Room(2, 2, None, 1.9),
            "other programs keep 1.9 of 2 cores busy, and torch computes with 1 thread; a step "
            "takes longer. Wait until they have ended",
        ),
        (
            4,
            2,
            Room(8, 64, None, 3.9),  # room for four threads, two in each process
            "other programs keep 3.9 of 8 cores busy, and 2 processes compute with 4 threads each; "
            "a step can take many times as long. Wait until they have ended, or set "
            "OMP_NUM_THREADS=2",
        ),
    ],
)
def test_what_is_lacking_and_what_to_do(
    count: int, processes: int, space: Room, found: str | None
) -> None:
    assert shortage(count, processes, space) == found


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V2 = "0::/slice/job\n"
V1 = "5:memory:/slice/job\n4:cpu,cpuacct:/slice/job\n0::/\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        (V2, {"slice/job/cpu.max": "150000 100000\n"}, 1.5),
        (V2, {"slice/job/cpu.max": "max 100000\n", "slice/cpu.max": "400000 100000\n"}, 4.0),
        (V2, {"slice/job/cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2.0),  # in a container
        ("0::/../../other\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (V2, {"unified/slice/cpu.max": "300000 100000\n"}, 3.0),
        (
            V1,
            {
                "cpu,cpuacct/slice/job/cpu.cfs_quota_us": "50000\n",
                "cpu,cpuacct/slice/job/cpu.cfs_period_us": "100000\n",
                "memory/slice/job/cpu.max": "1000 100000",
            },
            0.5,
        ),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3.0),
        ("", {"cpu.max": "200000 100000\n"}, 2.0),
        ("no colons", {"cpu.max": "what is this\n"}, None),
        (V2, {"slice/job/cpu.max": "1 0\n"}, None),
        (V2, {}, None),
    ],
)
def test_the_quota_of_a_container(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float | None
) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": membership})
    assert quota(proc, write(tmp_path / "cgroup", files)) == cores


STAT = """cpu  999 999 999 999 999 999 999 0 0 0
cpu0 10 2 3 400 50 1 4 7 0 0
cpu1 100 0 0 9 9 0 0 0 0 0
cpu10 1000 0 0 9 9 0 0 0 0 0
intr 5 5 5 5 5 5 5 5
ctxt 9
cpu3 is not a line of this file
"""


def test_busy_time_of_some_cores() -> None:
    """user + nice + system + irq + softirq; idle time, waiting for disks and stolen time are not
    work. Core 0: 10 + 2 + 3 + 1 + 4 = 20."""
    assert busy_seconds(STAT, {0}) == pytest.approx(20 * TICK)
    assert busy_seconds(STAT, {0, 1, 3}) == pytest.approx(120 * TICK)
    assert busy_seconds("", {0}) == 0.0


def test_other_programs_are_all_but_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In half a second, cores 0 and 1 work .9 seconds, .15 of them for this process: others keep
    (.9 - .15) / .5 = 1.5 cores busy. Core 2 is not ours."""
    text = "cpu0 {} 0 0 0 0 0 0\ncpu1 0 0 {} 0 0 0 0\ncpu2 {} 0 0 0 0 0 0\n"
    stat, seconds, own = tmp_path / "stat", [100.0], [3.0]
    stat.write_text(text.format(1000, 2000, 0))

    def sleep(asked: float) -> None:
        assert asked == MOMENT_S
        stat.write_text(text.format(1000 + round(0.5 / TICK), 2000 + round(0.4 / TICK), 9**9))
        seconds[0] += 0.5
        own[0] += 0.15

    monkeypatch.setattr(threads.time, "sleep", sleep)
    monkeypatch.setattr(threads.time, "monotonic", lambda: seconds[0])
    monkeypatch.setattr(threads, "_own_seconds", lambda: own[0])
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    found = measure({0, 1}, tmp_path, tmp_path / "no groups")
    assert found[:3] == (2, 3, None)
    assert found.busy == pytest.approx(1.5)


def test_what_a_system_does_not_say_is_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on macOS and Windows: no affinity, no /proc."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: None)
    assert allowed_cores() == {0, 1, 2, 3}
    found = measure(allowed_cores(), tmp_path / "none", tmp_path / "none")
    assert found == Room(4, 4)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert allowed_cores() == {0}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the processes of a run tell each other; nothing else is busy."""
    told: list[Any] = []
    monkeypatch.setattr(threads.platform, "node", lambda: "here")
    monkeypatch.setattr(distributed, "gathered", lambda own: told or [own])
    monkeypatch.setattr(threads, "measure", lambda cores: Room(len(cores), 8))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return told


def test_processes_of_this_machine_share_its_cores(processes: list[Any]) -> None:
    processes += [("here", {0, 1, 2, 3}), ("here", {0, 1, 2, 3}), ("there", {0, 1})]
    found = warning()
    assert found is not None
    assert found.startswith(
        "2 processes compute with 4 threads each on 4 of 8 cores (CPU affinity)"
    )


def test_processes_with_cores_of_their_own_lack_nothing(processes: list[Any]) -> None:
    processes += [("here", {0, 1, 2, 3}), ("here", {4, 5, 6, 7})]
    assert warning() is None


def test_a_gpu_needs_no_threads(processes: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    processes.append(("here", {0}))
    assert warning() is not None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert warning() is None


def test_this_machine_can_be_read() -> None:
    """The files of the system that runs the test, whatever they say."""
    found = measure(allowed_cores())
    assert 1 <= found.cores <= found.present
    assert found.busy >= 0
    assert torch.get_num_threads() == 1  # nothing changes it


def test_a_run_says_it_once_and_check_says_it_too(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "warning", lambda: "4 threads on 2 cores")
    shown = StringIO()
    job = Pipeline(load_recipe(recipe_file, None), Display(Console(file=shown, width=300)))
    job.variant("seeds/1", seed=1)
    assert shown.getvalue().count("warning") == 1
    assert "threads                    warning: 4 threads on 2 cores" in shown.getvalue()
    del job
    told = CliRunner().invoke(app, ["check", str(recipe_file)])
    assert told.exit_code == 0, told.output
    assert "\nthreads           warning: 4 threads on 2 cores\n" in told.output
