"""Files that are whole or not there, what they hold, and folders that one process works in."""

import hashlib
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from flatgd.errors import InUseError

LOCK_FILES = (".lock", ".owner")  # of `locked`


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which is at `path` whole, on the disk, or not at all."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is at `path` when the block has ended, and before that is not."""
    beside = path.with_name(f"{path.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    beside.rename(path)


def write_whole(path: Path, text: str) -> None:
    with whole(path) as file:
        file.write(text.encode())


def locked(folder: Path) -> FileLock:
    """A hold on a folder until the process ends, however it ends; once more in the same process.

    Raises InUseError if another process has it.
    """
    lock, owner = FileLock(folder / LOCK_FILES[0], is_singleton=True), folder / LOCK_FILES[1]
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InUseError(
            f"{folder} is in use by {owner.read_text() if owner.exists() else 'another process'}; "
            "wait until it has ended, or name another output"
        ) from None
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(path: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of a file, or of every file in a folder, by their names in it."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {
        "" if file == path else str(file.relative_to(path)): (file.stat().st_size, digest_of(file))
        for file in files
    }


def integrity_error(path: Path, wanted: Mapping[str, Sequence[Any]]) -> str | None:
    """What `path` lacks of the `contents` it had, None if nothing; more files do not count."""
    for name, (size, digest) in wanted.items():
        file = path / name if name else path
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != size or digest_of(file) != digest:
            return f"{file.name} is not as it was saved"
    return None


def flush(path: Path) -> None:
    """See a file's or a folder's entries onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
