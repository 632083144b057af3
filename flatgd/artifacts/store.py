"""Finished work is not done again: each artifact of a run has a manifest with its fingerprint.

An artifact is a file or a folder below the run's root, its fingerprint a digest of everything it
depends on. It is built at `NAME.partial`, renamed when it is complete, and then gets its manifest.
After an interruption there is no manifest, and the artifact is built again (a training resumes at
its last checkpoint). An artifact with another fingerprint is replaced. Of two artifacts with one
fingerprint the second is linked to the first.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from flatgd.artifacts.layout import CARD, MANIFESTS
from flatgd.errors import UsageError
from flatgd.io.files import file_digests, integrity_error, read_sealed, write_sealed
from flatgd.runtime import distributed

FORMAT = 1  # of manifests; a run with another one is refused
BEFORE_FORMATS = ".stages"  # where flatgd 0.1 kept manifests, without a format number
Outcome = Literal["built", "kept", "reused"]


def fingerprint_of(*parts: Any) -> str:
    """A digest of anything that JSON can hold, and of flatgd's version. Dataclasses count by their
    fields."""
    text = json.dumps([version("flatgd"), *parts], sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def fingerprint_of_list(items: Iterable[Any]) -> str:
    """`fingerprint_of([*items])`. Its JSON text is never in memory as a whole."""
    parts, digest = iter(items), hashlib.sha256()
    digest.update(json.dumps([version("flatgd"), []])[:-2].encode())
    separator = ""
    while part := list(islice(parts, 1024)):
        text = json.dumps(part, sort_keys=True, default=_plain)[1:-1]
        digest.update((separator + text).encode())
        separator = ", "
    digest.update(b"]]")
    return digest.hexdigest()[:20]


def versions() -> dict[str, str]:
    """Versions that can change a result slightly. They are recorded but do not cause a rebuild."""
    return {package: version(package) for package in ("torch", "transformers")}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return str(value)


class ArtifactStore:
    """The artifacts below `root`. An artifact with the same fingerprint below `parent` is linked
    instead of built. Raises UsageError for a run that another version of flatgd wrote."""

    def __init__(self, root: Path, parent: "ArtifactStore | None" = None):
        self.root = root
        self._parent = parent
        self._manifests = root / MANIFESTS
        self._intact: set[str] = set()  # verified or built by this process
        self._refuse_other_formats()

    def get_or_build(
        self,
        name: str,
        fingerprint: str,
        build: Callable[[Path], Any],
        depends_on: Sequence[str] = (),
        collective: bool = False,
        inputs: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Make sure that `root/name` has this fingerprint; `build` writes it to the path it gets.

        The manifest keeps what `build` returns as the artifact's cost, the fingerprints of the
        artifacts in `depends_on` for `is_stale`, and the fields of the recipe in `inputs`. Of
        several processes the first one builds, or all of them if `collective`.
        """
        assert ".." not in Path(name).parts
        begun = time.time()
        outcome, partial, cost = distributed.of_first(lambda: self._begin(name, fingerprint))
        if outcome == "built" and (collective or distributed.is_first()):
            cost = build(partial)
        distributed.wait()
        if outcome != "kept" and distributed.is_first():
            self._finish(name, fingerprint, partial, cost, depends_on, begun, inputs)
        elif inputs is not None and distributed.is_first() and self.inputs(name) != inputs:
            self._write(name, {**self._manifest(name), "inputs": inputs})
        distributed.wait()
        return outcome

    def _begin(self, name: str, fingerprint: str) -> tuple[Outcome, Path, Any]:
        """What to do, where to write, and the cost if it is known already."""
        target = self.root / name
        if self.fingerprint(name) == fingerprint and self.integrity_error(name) is None:
            return "kept", target, None
        self._refuse_foreign(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        duplicate = self._find_duplicate(name, fingerprint)
        partial = self._partial(target, fingerprint)
        if duplicate is None:
            return "built", partial, None
        path, cost = duplicate
        _remove(partial)
        _link(path, partial)
        return "reused", partial, cost

    def _finish(
        self,
        name: str,
        fingerprint: str,
        partial: Path,
        cost: Any,
        depends_on: Sequence[str],
        begun: float,
        inputs: Mapping[str, Any] | None,
    ) -> None:
        target = self.root / name
        self._manifest_path(name).unlink(missing_ok=True)
        _remove(target)
        partial.rename(target)
        manifest = {
            "format": FORMAT,
            "name": name,
            "fingerprint": fingerprint,
            "seconds": round(time.time() - begun, 1),
            "versions": versions(),
            "cost": cost,
            "inputs": inputs,
            "depends_on": {other: self.fingerprint(other) for other in depends_on},
            "files": {n: d for n, d in file_digests(target).items() if Path(n).name != CARD},
        }
        self._write(name, manifest)
        _owner_of(partial).unlink(missing_ok=True)
        self._intact.add(name)

    def _write(self, name: str, manifest: Mapping[str, Any]) -> None:
        path = self._manifest_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, manifest)

    def record(self, name: str, fingerprint: str, only: Container[str] | None = None) -> None:
        """Write the manifest of an artifact that was not built by `get_or_build`. `only`: of the
        files in a folder, those that flatgd wrote."""
        files = file_digests(self.root / name)
        own = {file: digest for file, digest in files.items() if only is None or file in only}
        manifest = {"format": FORMAT, "name": name, "fingerprint": fingerprint, "files": own}
        self._write(name, manifest)

    def remove_recorded(self, name: str) -> None:
        """Delete the files of an artifact that its manifest lists, and no others."""
        for file in self._manifest(name).get("files", {}):
            (self.root / name / file).unlink(missing_ok=True)

    def has_changed(self, name: str, fingerprint: str) -> bool:
        """Whether the artifact is there with another fingerprint."""
        return self.fingerprint(name) not in (None, fingerprint)

    def integrity_error(self, name: str, only: Collection[str] | None = None) -> str | None:
        """What is missing or corrupted in a finished artifact; None if nothing is. `only`: look at
        these files of a folder alone."""
        if name in self._intact or self.fingerprint(name) is None:
            return None
        files = self._manifest(name).get("files", {})
        chosen = {k: v for k, v in files.items() if only is None or not k or k in only}
        error = integrity_error(self.root / name, chosen)
        if error is None and only is None:
            self._intact.add(name)
        return error

    def is_stale(self, name: str) -> bool:
        """Whether an artifact that this one depends on has been rebuilt with other inputs. One that
        was deleted since does not count."""
        depends_on: dict[str, str | None] = self._manifest(name).get("depends_on", {})
        now = {other: self.fingerprint(other) for other in depends_on}
        return any(now[other] not in (None, known) for other, known in depends_on.items())

    def fingerprint(self, name: str) -> str | None:
        """The fingerprint of a finished artifact; None where there is none."""
        return self._manifest(name).get("fingerprint") if (self.root / name).exists() else None

    def inputs(self, name: str) -> dict[str, Any] | None:
        """The fields of the recipe that an artifact was built from; None where it is not known."""
        found: dict[str, Any] | None = self._manifest(name).get("inputs")
        return found

    def depends_on(self, name: str) -> list[str]:
        """The artifacts that an artifact was built from."""
        return list(self._manifest(name).get("depends_on", {}))

    def built_with(self, name: str) -> dict[str, str]:
        """The versions of packages that an artifact was built with."""
        return dict(self._manifest(name).get("versions", {}))

    def cost(self, name: str) -> dict[str, Any]:
        """What `build` returned when the artifact was built."""
        return self._manifest(name).get("cost") or {}

    def needed_by(self, name: str) -> list[str]:
        """An artifact and everything that it was built from, in the order of building."""
        found: dict[str, None] = {}
        for other in self.depends_on(name):
            found |= dict.fromkeys(self.needed_by(other))
        return [*found, *([] if name in found else [name])]

    def _manifest(self, name: str) -> dict[str, Any]:
        return _read(self._manifest_path(name))

    def _manifest_path(self, name: str) -> Path:
        return self._manifests / f"{name.replace('/', '__')}.json"

    def _refuse_foreign(self, name: str) -> None:
        """Raises UsageError where building would delete files that no build of ours wrote."""
        target = self.root / name
        foreign: list[Path] = []
        if target.exists() and self._manifest_path(name).exists():
            if files := self._manifest(name).get("files"):
                known = {target / file if file else target for file in files}
                there = [p for p in target.rglob("*") if p.is_file()] if target.is_dir() else []
                foreign = [p for p in there if p not in known and p.name != CARD]
        elif target.exists() and not _owner_of(_partial_of(target)).exists():
            foreign = [target]
        if _partial_of(target).exists() and not _owner_of(_partial_of(target)).exists():
            foreign = [_partial_of(target)]
        if foreign:
            raise UsageError(
                f"{foreign[0]} was not written by flatgd, and building {name} would delete it. "
                "Move it away, or choose another output."
            )

    def _refuse_other_formats(self) -> None:
        found = [_read(path) for path in sorted(self._manifests.glob("*.json"))]
        other = [m.get("format") for m in found if m and m.get("format") != FORMAT]
        if other or (self.root / BEFORE_FORMATS).is_dir():
            is_numbered = bool(other) and other[0] is not None
            written = f"format {other[0]}" if is_numbered else "no format number"
            raise UsageError(
                f"{self.root} is a run with manifests of {written}, and this version of flatgd "
                f"reads format {FORMAT}. Choose another output, or delete the folder first."
            )

    def _find_duplicate(
        self, name: str, fingerprint: str, is_parent: bool = False
    ) -> tuple[Path, dict[str, Any]] | None:
        """Another artifact with that fingerprint, here or in a parent, and its cost."""
        for path in sorted(self._manifests.glob("*.json")):
            other = _read(path).get("name")
            if other is None or (other == name and not is_parent):
                continue
            if self.fingerprint(other) == fingerprint and self.integrity_error(other) is None:
                return self.root / str(other), self.cost(other)
        return self._parent._find_duplicate(name, fingerprint, True) if self._parent else None

    def _partial(self, target: Path, fingerprint: str) -> Path:
        """Where to build. Whatever an interrupted build with another fingerprint left is removed;
        a build with the same one resumes there."""
        partial = _partial_of(target)
        owner = _owner_of(partial)
        if not owner.is_file() or owner.read_bytes() != fingerprint.encode():
            _remove(partial)
            owner.write_text(fingerprint)
        return partial


def _read(path: Path) -> dict[str, Any]:
    """A manifest. One that is unreadable, or does not match its own digest, counts as absent, so
    that its artifact is built again."""
    sealed = read_sealed(path)
    return _unsealed(path) if sealed is None else sealed


def _unsealed(path: Path) -> dict[str, Any]:
    """A manifest with neither digest nor format number, as older versions wrote them."""
    try:
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    is_older = isinstance(manifest, dict) and not {"sha256", "format"} & manifest.keys()
    return manifest if is_older else {}


def _partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.partial")


def _owner_of(partial: Path) -> Path:
    """The file with the fingerprint of the build that is under way at `partial`."""
    return partial.with_name(f"{partial.name}.key")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(
            source, target, copy_function=_link_file, ignore=shutil.ignore_patterns(CARD)
        )
    else:
        _link_file(str(source), str(target))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)
