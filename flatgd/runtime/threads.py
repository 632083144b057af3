"""Whether torch's threads have CPU cores of their own, and what to set if they have not.

The threads of a step wait for each other. Where they share cores with other threads, every step
waits for the slowest, and can take many times as long. Nothing is changed here: the user chooses
the number of threads.

Linux alone says what other processes and the container's quota leave. What cannot be read counts as
no limit.
"""

import math
import os
import platform
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from flatgd.runtime import distributed

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
MOMENT_S = 0.2  # between two readings of how busy the cores are
CORE = re.compile(r"cpu(\d+) +((?:\d+ +){6}\d+)")  # a core's line in /proc/stat
LONGER = "a step can take many times as long"
WHOLE_MACHINE = "0::/\n0:cpu:/"  # the control groups of a process whose own cannot be read


class Room(NamedTuple):
    """The CPU cores for this run. `cores` are those that its processes may run on, of `present` in
    the machine; `quota` is how many their container may use, `busy` how many others use."""

    cores: int
    present: int
    quota: float | None = None
    busy: float = 0.0


def warning() -> str | None:
    """What the threads of this run lack and what to do, in one sentence or two; None if nothing,
    or if torch computes on a GPU. All processes must call it."""
    import torch

    if torch.cuda.is_available():
        return None
    shared = distributed.gathered((platform.node(), allowed_cores()))
    here = [cores for host, cores in shared if host == platform.node()]
    threads = torch.get_num_threads()
    # while the first process looks, the others sleep
    return distributed.of_first(lambda: shortage(threads, len(here), measure(set().union(*here))))


def shortage(threads: int, processes: int, room: Room) -> str | None:
    """What `processes` with `threads` each lack in that room, and what to do; None if nothing."""
    usable = min(room.cores, room.quota or math.inf)
    wanted = threads * processes
    who = (
        f"torch computes with {_counted(threads, 'thread')}"
        if processes == 1
        else f"{processes} processes compute with {_counted(threads, 'thread')} each"
    )
    if wanted > math.ceil(usable):
        cores = _counted(room.present, "core")
        if usable < room.present:
            cause = "cgroup quota" if usable < room.cores else "CPU affinity"
            cores = f"{usable:g} of {cores} ({cause})"
        return f"{who} on {cores}; {LONGER}. {_fewer(usable, threads, processes)}"
    if room.busy + wanted < room.cores + max(0.5, room.cores / 10):
        return None
    found = f"other programs keep {room.busy:.1f} of {_counted(room.cores, 'core')} busy, and {who}"
    left = max(1, int((room.cores - room.busy) / processes + 0.25))
    fewer = f", or set OMP_NUM_THREADS={left}" if left < threads else ""
    longer = LONGER if wanted > 1 else "a step takes longer"
    return f"{found}; {longer}. Wait until they have ended{fewer}"


def _fewer(usable: float, threads: int, processes: int) -> str:
    if processes == 1 or processes <= usable:
        return f"Set OMP_NUM_THREADS={max(1, int(usable / processes))}"
    start = f"Start no more than {_counted(max(1, int(usable)), 'process', 'processes')}"
    return start + (", and set OMP_NUM_THREADS=1" if threads > 1 else "")


def _counted(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"


def allowed_cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return set(affinity(0)) if affinity else set(range(os.cpu_count() or 1))


def measure(cores: Collection[int], proc: Path = PROC, cgroup: Path = CGROUP) -> Room:
    """The room on these cores, from two readings a moment apart."""
    before = _text(proc / "stat"), _own_seconds(), time.monotonic()
    time.sleep(MOMENT_S)
    after = _text(proc / "stat"), _own_seconds(), time.monotonic()
    own, elapsed = after[1] - before[1], after[2] - before[2]
    busy = busy_seconds(after[0], cores) - busy_seconds(before[0], cores) - own
    present = max(os.cpu_count() or 1, len(cores))
    return Room(len(cores), present, quota(proc, cgroup), max(0.0, busy / elapsed))


def quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """The cores that the control groups of this process may use, whatever their version; None if
    there is no limit. The narrowest group above it counts."""
    limits = []
    for line in (_text(proc / "self/cgroup") or WHOLE_MACHINE).splitlines():
        controllers, path = [*line.split(":", 2), "", ""][1:3]
        if not controllers:  # version 2
            mounts = [cgroup, cgroup / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [cgroup / "cpu", cgroup / controllers]
        else:
            continue
        limits += [_limit(group) for mount in mounts for group in _groups(mount, path)]
    return min((limit for limit in limits if limit), default=None)


def _groups(mount: Path, path: str) -> list[Path]:
    """A control group and all above it. The path may lead out of what a container sees, whose own
    group is then the topmost one."""
    names = [name for name in path.split("/") if name]
    depths = range(1 if ".." in names else len(names) + 1)
    return [mount.joinpath(*names[:depth]) for depth in depths]


def _limit(group: Path) -> float | None:
    """The cores that one control group may use; None if it has no limit ("max" or -1)."""
    words = _text(group / "cpu.max").split() or [
        _text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")
    ]
    if len(words) != 2 or not all(word.isdigit() and int(word) for word in words):
        return None
    return int(words[0]) / int(words[1])


def busy_seconds(stat: str, cores: Collection[int]) -> float:
    """The CPU time that all processes have taken on these cores, from the text of /proc/stat."""
    ticks = 0
    for line in stat.splitlines():
        if core := CORE.match(line):
            user, nice, system, _, _, irq, softirq = map(int, core[2].split())
            ticks += (user + nice + system + irq + softirq) * (int(core[1]) in cores)
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
