"""Finished work is not done again: each output of a run is kept under the key of all it depends on.

An output is a file or a folder below the run's root. It is built beside its place as `NAME.partial`
and renamed when complete, then stamped with its key. A run that was cut off finds no stamp and
builds that output again (a training goes on from its last checkpoint); one with another key is
replaced. Two outputs with one key are one piece of work: the second is linked to the first.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from flatgd import __version__, processes
from flatgd.files import contents, harm, write_whole

Outcome = Literal["built", "kept", "reused"]


def key_of(*parts: Any) -> str:
    """A digest of anything JSON can hold, and of flatgd's version; dataclasses by their fields."""
    text = json.dumps([__version__, *parts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return str(value)


class Stages:
    """The outputs below `root`. What is already there below a `parent`, under the same key, is
    linked instead of built."""

    def __init__(self, root: Path, parent: "Stages | None" = None):
        self.root = root
        self._parent = parent
        self._stamps = root / ".stages"
        self._sound: set[str] = set()  # what this process has looked at, or made

    def produce(
        self,
        name: str,
        key: str,
        build: Callable[[Path], Any],
        on: Sequence[str] = (),
        together: bool = False,
    ) -> Outcome:
        """Make `root/name` hold what `key` stands for; `build` writes it to a given path.

        What `build` returns, if anything, is kept as its `cost`. `on`: the outputs it is made from,
        so that `is_stale` can tell when they have changed. Of several processes the first builds,
        or all `together`.
        """
        assert ".." not in Path(name).parts
        begun = time.time()
        outcome, partial, cost = processes.of_first(lambda: self._begin(name, key))
        if outcome == "built" and (together or processes.is_first()):
            cost = build(partial)
        processes.wait()
        if outcome != "kept" and processes.is_first():
            self._finish(name, key, partial, cost, on, begun)
        processes.wait()
        return outcome

    def _begin(self, name: str, key: str) -> tuple[Outcome, Path, Any]:
        """What is to be done, where it is put, and its cost if that is known."""
        target = self.root / name
        if self.key(name) == key and self.harm(name) is None:
            return "kept", target, None
        target.parent.mkdir(parents=True, exist_ok=True)
        twin = self._twin(name, key)
        partial = self._partial(target, key)
        if twin is None:
            return "built", partial, None
        path, cost = twin
        _remove(partial)
        _link(path, partial)
        return "reused", partial, cost

    def _finish(
        self, name: str, key: str, partial: Path, cost: Any, on: Sequence[str], begun: float
    ) -> None:
        target, stamp = self.root / name, self._stamp(name)
        stamp.unlink(missing_ok=True)
        _remove(target)
        partial.rename(target)
        (target.parent / f"{target.name}.partial.key").unlink(missing_ok=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "name": name,
            "key": key,
            "seconds": round(time.time() - begun, 1),
            "cost": cost,
            "on": {place: self.key(place) for place in on},
            "files": contents(target),
        }
        write_whole(stamp, json.dumps(record) + "\n")
        self._sound.add(name)

    def is_outdated(self, name: str, key: str) -> bool:
        """Whether the output is there, under another key."""
        return self.key(name) not in (None, key)

    def harm(self, name: str) -> str | None:
        """What of a finished output is no more as it was written, None if nothing."""
        if name in self._sound or self.key(name) is None:
            return None
        found = harm(self.root / name, self._record(name).get("files", {}))
        if found is None:
            self._sound.add(name)
        return found

    def is_stale(self, name: str) -> bool:
        """Whether something that the output was made from has been made anew since."""
        on: dict[str, str | None] = self._record(name).get("on", {})
        return any(self.key(place) != key for place, key in on.items())

    def key(self, name: str) -> str | None:
        """What a finished output stands for, None where there is none."""
        return self._record(name).get("key") if (self.root / name).exists() else None

    def made_from(self, name: str) -> list[str]:
        """The outputs that one was made from."""
        return list(self._record(name).get("on", {}))

    def cost(self, name: str) -> dict[str, Any]:
        """What `build` told when the output was made."""
        return self._record(name).get("cost") or {}

    def _record(self, name: str) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads(self._stamp(name).read_text())
        except (OSError, ValueError):
            return {}
        return record

    def _stamp(self, name: str) -> Path:
        return self._stamps / f"{name.replace('/', '__')}.json"

    def _twin(
        self, name: str, key: str, is_parent: bool = False
    ) -> tuple[Path, dict[str, Any]] | None:
        """Another output of that key, here or above, and what it cost."""
        for path in sorted(self._stamps.glob("*.json")):
            other = json.loads(path.read_text())["name"]
            is_same = (other != name or is_parent) and self.key(other) == key
            if is_same and self.harm(other) is None:
                return self.root / str(other), self.cost(other)
        return self._parent._twin(name, key, True) if self._parent else None

    def _partial(self, target: Path, key: str) -> Path:
        """Where to build; what an interrupted build of another key left there is removed."""
        partial = target.parent / f"{target.name}.partial"
        note = target.parent / f"{target.name}.partial.key"
        if not note.exists() or note.read_text() != key:
            _remove(partial)
            note.write_text(key)
        return partial


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
