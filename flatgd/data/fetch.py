"""Download published data sets: checked by SHA-256, resumed where cut off, unpacked with care.

A file is written as NAME.partial and renamed when its checksum holds, so what stands under its name
is whole. A server may break off, stall or lie: the first two are tried again from where they
stopped, the last is caught by the checksum.
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
from flatgd.io.files import digest_of

CHUNK = 1 << 16
GIB = 1 << 30


class Download(NamedTuple):
    """One published file; a .tar.gz is unpacked beside itself."""

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
class Patience:
    """How long a server is waited for."""

    tries: int = 5
    """Attempts without a single new byte before giving up."""
    timeout_s: float = 30.0
    """Silence after which a connection counts as stalled."""
    pause_s: float = 1.0
    """Before the second attempt; doubled each time."""
    largest: int = 2 * GIB
    """No file is longer, packed or unpacked, in bytes."""


class _BrokenError(Exception):
    """A download that stopped early and may be tried again."""


def fetch(
    download: Download,
    folder: Path,
    patience: Patience = Patience(),
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> list[Path]:
    """The files of one download below `folder`. Raises DataError with what to do next.

    `progress` is told the bytes so far and the whole number, None where the server does not say.
    """
    target = folder / download.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists() or digest_of(target) != download.sha256:
            _download(download, target, patience, progress)
        return _unpack(target, patience.largest) if _is_archive(target) else [target]
    except OSError as error:
        raise DataError([Problem(str(target), 0, f"cannot be written: {error.strerror}")]) from None


def _download(
    download: Download,
    target: Path,
    patience: Patience,
    progress: Callable[[int, int | None], None],
) -> None:
    partial = target.with_name(target.name + ".partial")
    idle, restarted = 0, False
    while True:
        before = _size(partial)
        try:
            _receive(download.url, partial, patience, progress)
        except _BrokenError as broken:
            idle = 0 if _size(partial) > before else idle + 1
            if idle >= patience.tries:
                raise _failed(download, f"{broken}, {idle} times; what came is kept") from None
            time.sleep(patience.pause_s * 2**idle)
            continue
        if digest_of(partial) == download.sha256:
            partial.replace(target)
            return
        partial.unlink()
        if not before or restarted:
            raise _failed(download, "another file came than was published (its SHA-256 differs)")
        restarted = True  # the part from before may have been at fault


def _failed(download: Download, reason: str) -> DataError:
    mend = "try again later, or put the file there yourself"
    return DataError([Problem(download.url, 0, f"{reason}; {mend} as {download.file}")])


def _receive(
    url: str, partial: Path, patience: Patience, progress: Callable[[int, int | None], None]
) -> None:
    """Append to `partial` what is missing of it; _BrokenError when the server stops early."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=patience.timeout_s) as answer:
            if _starts_at(answer) != have:
                have = 0
            rest = answer.headers.get("Content-Length", "")
            total = have + int(rest) if rest.isdigit() else None
            with partial.open("ab" if have else "wb") as file:
                while chunk := answer.read1(CHUNK):
                    file.write(chunk)
                    have += len(chunk)
                    if have > patience.largest:
                        raise DataError(
                            [Problem(url, 0, f"longer than {patience.largest:,} bytes")]
                        )
                    progress(have, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is missing, or the part is of another file
            return
        if error.code < 500:
            reason = f"the server says {error.code} {error.reason}"
            raise DataError([Problem(url, 0, reason)]) from None
        raise _BrokenError(f"the server says {error.code} {error.reason}") from None
    except TimeoutError:
        raise _BrokenError(f"no byte came for {patience.timeout_s:g} s") from None
    except urllib.error.URLError as error:
        raise _BrokenError(f"no connection ({error.reason})") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise _BrokenError(f"the connection broke ({type(error).__name__})") from None
    if total is not None and have < total:
        raise _BrokenError(f"the connection broke at {have:,} of {total:,} bytes")


def _starts_at(answer: Any) -> int:
    """The first byte that the server sends: of the range asked for, or of the whole file."""
    place = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    return int(place) if answer.status == 206 and place.isdigit() else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_archive(path: Path) -> bool:
    return path.name.endswith(".tar.gz")


def _unpack(archive: Path, largest: int) -> list[Path]:
    """Regular files alone, none outside the folder; all of them or none."""
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
        place = PurePosixPath(member.name)
        if member.isdir():
            continue
        if not member.isreg() or place.is_absolute() or ".." in place.parts:
            reason = f"holds {member.name!r}, a link or a path outside the folder; not unpacked"
            raise DataError([Problem(str(archive), 0, reason)])
        room -= member.size
        if room < 0:
            raise DataError([Problem(str(archive), 0, f"unpacks to more than {largest:,} bytes")])
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        source = tar.extractfile(member)
        assert source is not None
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
