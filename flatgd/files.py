"""Files that are whole or not there, what they hold, and folders that one process works in."""

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from flatgd.errors import InUseError


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


def write_whole(path: Path, text: str) -> None:
    with whole(path) as file:
        file.write(text.encode())


def locked(folder: Path) -> FileLock:
    """A hold on a folder until the process ends, however it ends; once more in the same process.

    Raises InUseError if another process has it.
    """
    lock, owner = FileLock(folder / ".lock", is_singleton=True), folder / ".owner"
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


def flush(path: Path) -> None:
    """See a file's or a folder's entries onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
