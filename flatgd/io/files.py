"""Atomic writes, digests of files, and locks on folders."""

import errno
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from flatgd.errors import InUseError, UsageError

LOCK_FILES = (".lock", ".owner")  # of `lock_folder`


@contextmanager
def writing(path: Path, kept: str = "") -> Iterator[None]:
    """Inside the block, an OSError becomes a UsageError: the path, the reason, the free space.

    `kept` is a sentence about what remains and what to do next. Wrap only code that writes.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        room = _free_space(path) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise UsageError(f"cannot write {path}: {reason}{room}. {kept}".rstrip()) from None


def _free_space(path: Path) -> str:
    """The space left on the disk of a path, as " (0.0 MB free)"; "" if that cannot be read."""
    for folder in path.absolute().parents:
        with suppress(OSError):
            return f" ({shutil.disk_usage(folder).free / 1e6:,.1f} MB free)"
    return ""


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` complete and on the disk, or not at all.

    It is written as NAME.new and renamed at the end.
    """
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with suppress(OSError):  # it must not hide the first error
            beside.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` once the block ends, or is removed if it fails.

    Its own name is new, so that it never replaces anything.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        beside.chmod(0o777 & ~_umask())
        yield beside
        beside.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _umask() -> int:
    """The permissions that new files lack. They can only be read by setting them."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_atomically(path: Path, text: str) -> None:
    """Write a UTF-8 file that is complete or absent."""
    with atomic_writer(path) as file:
        file.write(text.encode())


def lock_folder(folder: Path) -> FileLock:
    """Lock a folder until this process ends, however it ends.

    The same process may lock it again. Raises InUseError if another process holds the lock.
    """
    lock, owner = FileLock(folder / LOCK_FILES[0], is_singleton=True), folder / LOCK_FILES[1]
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = owner.read_text(errors="replace") if owner.exists() else "another process"
        raise InUseError(
            f"{folder} is in use by {holder}. Wait until it ends, or choose another output folder"
        ) from None
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(path: Path) -> dict[str, tuple[int, str]]:
    """(bytes, SHA-256) of every file in a folder, by its path in the folder; of one file, by ""."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {
        "" if file == path else str(file.relative_to(path)): (
            file.stat().st_size,
            file_sha256(file),
        )
        for file in files
    }


def integrity_error(path: Path, expected: Mapping[str, Sequence[Any]]) -> str | None:
    """How `path` differs from the `file_digests` recorded for it; None if it does not.

    Files that were not recorded are ignored.
    """
    for name, (size, digest) in expected.items():
        file = path / name if name else path
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != size or file_sha256(file) != digest:
            return f"{file.name} has changed since it was saved"
    return None


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
