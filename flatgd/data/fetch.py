"""Downloads published data sets: SHA-256 checked, interrupted downloads resumed, archives unpacked.

A file is written as NAME.partial and renamed once its checksum matches, so a file under its own
name is complete. If the server closes the connection or stalls, the download resumes from the last
byte. If the server sends something else, the checksum finds it.
"""

import http.client
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from flatgd.errors import DataError, Problem
from flatgd.io.files import file_sha256, writing

CHUNK = 1 << 16
GIB = 1 << 30


class Download(NamedTuple):
    """One published file. A .tar.gz is unpacked into a folder beside it."""

    url: str
    sha256: str
    file: str


PARLAI = "http://parl.ai/downloads"
DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
DATASETS: dict[str, tuple[Download, ...]] = {
    "bad": (
        Download(
            f"{PARLAI}/bot_adversarial_dialogue/dialogue_datasets_v0.2.tar.gz",
            "2178b022fac154ddd9b570f6386abc4cd3e7ceb4476f0bebfbce5941424461eb",
            "dialogue_datasets_v0.2.tar.gz",
        ),
    ),
    "bbf": (
        Download(
            f"{PARLAI}/dialogue_safety/single_turn_safety.json",
            "f3a46265aa639cfa4b55d2be4dca4be1c596acb5e8f94d7e0041e1a54cedd4cd",
            "single_turn_safety.json",
        ),
        Download(
            f"{PARLAI}/dialogue_safety/multi_turn_safety.json",
            "e3e577f456d63d51eb7b5f98ffd251ad695476f186d422fa8de1a177742fa7b6",
            "multi_turn_safety.json",
        ),
    ),
    "prosocial": (
        Download(
            f"{DRIVE}1d-987AjyfVdFnohBqQ3yaHt-b5mVezHa",
            "112e402e283949cbc36b67a86877c8aea098a7fe40fd3e180095e1e147958eba",
            "prosocial_dialog_v1.tar.gz",
        ),
    ),
}


@dataclass(frozen=True)
class RetryPolicy:
    """When a download is retried, and when it is given up."""

    tries: int = 5
    """Consecutive attempts without a new byte before the download fails."""
    timeout_s: float = 30.0
    """Seconds without data after which a connection counts as stalled."""
    pause_s: float = 1.0
    """Seconds before the second attempt. The pause doubles each time."""
    largest: int = 2 * GIB
    """Size limit in bytes, for a download and for the contents of an archive."""


class _InterruptedError(Exception):
    """The download stopped early and can be retried."""


def fetch(
    download: Download,
    folder: Path,
    policy: RetryPolicy = RetryPolicy(),
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> list[Path]:
    """Download one file into `folder` if it is not there, and unpack it if it is an archive.

    Returns the files. `progress` receives the bytes so far and the total, which is None if the
    server does not say. Raises DataError with what to do next, UsageError if the disk is full or
    read-only.
    """
    target = folder / download.file
    with writing(target, "What was downloaded so far is kept; run the command again to resume"):
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists() or file_sha256(target) != download.sha256:
            _download(download, target, policy, progress)
        return _unpack(target, policy.largest) if _is_archive(target) else [target]


def _download(
    download: Download,
    target: Path,
    policy: RetryPolicy,
    progress: Callable[[int, int | None], None],
) -> None:
    partial = target.with_name(target.name + ".partial")
    idle, restarted = 0, False
    while True:
        before = _size(partial)
        try:
            _receive(download.url, partial, policy, progress)
        except _InterruptedError as broken:
            idle = 0 if _size(partial) > before else idle + 1
            if idle >= policy.tries:
                raise _download_error(
                    download, f"{broken}, {idle} times; the part received so far is kept"
                ) from None
            time.sleep(policy.pause_s * 2**idle)
            continue
        if file_sha256(partial) == download.sha256:
            partial.replace(target)
            return
        partial.unlink()
        if not before or restarted:
            raise _download_error(
                download, "the file is not the published one (its SHA-256 differs)"
            )
        restarted = True  # the partial file of an earlier run may be the cause


def _download_error(download: Download, reason: str) -> DataError:
    advice = f"try again later, or download it yourself and save it as {download.file}"
    return DataError([Problem(download.url, 0, f"{reason}; {advice}")])


def _receive(
    url: str, partial: Path, policy: RetryPolicy, progress: Callable[[int, int | None], None]
) -> None:
    """Append to `partial` what is missing of it; _BrokenError when the server stops early."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=policy.timeout_s) as answer:
            if _first_byte(answer) != have:
                have = 0
            rest = answer.headers.get("Content-Length", "")
            total = have + int(rest) if rest.isdigit() else None
            with partial.open("ab" if have else "wb") as file:
                while chunk := answer.read1(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    if have > policy.largest:
                        raise DataError([Problem(url, 0, f"longer than {policy.largest:,} bytes")])
                    progress(have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # complete, or a part of another file: the checksum decides
            return
        if error.code < 500:
            reason = f"the server says {error.code} {error.reason}"
            raise DataError([Problem(url, 0, reason)]) from None
        raise _InterruptedError(f"the server says {error.code} {error.reason}") from None
    except TimeoutError:
        raise _InterruptedError(f"no data for {policy.timeout_s:g} s") from None
    except urllib.error.URLError as error:
        raise _InterruptedError(f"no connection ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise _InterruptedError(f"the connection broke ({type(error).__name__})") from None
    if total is not None and have < total:
        raise _InterruptedError(f"the connection broke at {have:,} of {total:,} bytes")


def _first_byte(answer: Any) -> int:
    """The offset of the first byte in the answer; 0 if the server ignores the range."""
    start = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if answer.status == 206 and start.isdigit() else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_archive(path: Path) -> bool:
    return path.name.endswith(".tar.gz")


def _unpack(archive: Path, largest: int) -> list[Path]:
    """Unpack all files or none. Links and paths outside the folder are refused."""
    folder = archive.parent / archive.name.removesuffix(".tar.gz")
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            with tarfile.open(archive) as tar:
                _extract(tar, partial, archive, largest)
        except (tarfile.TarError, EOFError) as error:
            raise DataError([Problem(str(archive), 0, f"cannot be unpacked: {error}")]) from None
        partial.rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _extract(tar: tarfile.TarFile, folder: Path, archive: Path, largest: int) -> None:
    room = largest
    for member in tar:
        name = PurePosixPath(member.name)
        if member.isdir():
            continue
        if not member.isreg() or name.is_absolute() or ".." in name.parts:
            reason = f"holds {member.name!r}, a link or a path outside the folder; not unpacked"
            raise DataError([Problem(str(archive), 0, reason)])
        room -= member.size
        if room < 0:
            raise DataError([Problem(str(archive), 0, f"unpacks to more than {largest:,} bytes")])
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
