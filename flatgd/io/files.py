"""Atomic writes, digests of files, and locks on folders."""

import errno
import hashlib
import json
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
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = f" ({free_bytes(path) / 1e6:,.1f} MB free)" if is_full else ""
        raise UsageError(f"cannot write {path}: {reason}{room}. {kept}".rstrip()) from None


def free_bytes(path: Path) -> int:
    """Free space on the disk where `path` is or would be; of its folders, the nearest counts."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


@contextmanager
def atomic_writer(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a file that appears at `path` complete and on the disk, or not at all.

    It is written as NAME.new and renamed at the end. `mode` are its permissions, before the umask.
    """
    beside = path.with_name(path.name + ".new")
    try:
        beside.unlink(missing_ok=True)  # it would keep its permissions
        with open(beside, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
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


def write_private(path: Path, text: str) -> None:
    """`write_atomically`, readable by its owner alone: answer keys, votes, chats."""
    with atomic_writer(path, 0o600) as file:
        file.write(text.encode())


def write_sealed(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object together with its own digest, for `read_sealed`."""
    write_atomically(path, json.dumps({**values, "sha256": values_digest(values)}))


def read_sealed(path: Path) -> dict[str, Any] | None:
    """The object that `write_sealed` wrote; None if it is missing or corrupted."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(values, dict) or "sha256" not in values:
        return None
    return values if values.pop("sha256") == values_digest(values) else None


def values_digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of an object that JSON can hold, in hexadecimal."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


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
