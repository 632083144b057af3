"""Reading text files, plain or compressed, up to a size limit."""

import bz2
import gzip
import lzma
import math
import os
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from flatgd.errors import DataError, Problem

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]

_BROKEN: tuple[type[Exception], ...] = OSError, EOFError, ValueError, zlib.error, lzma.LZMAError
if zstandard is not None:
    _BROKEN = (*_BROKEN, zstandard.ZstdError)
EXTRA = "`pip install 'flatgd[hub]'`"


class _ZstdFile:
    """Reads the frames of a zstd file. zstandard's own reader takes a file that ends inside a frame
    for a whole one."""

    def __init__(self, file: BinaryIO):
        if zstandard is None:
            raise ValueError(f".zst files need {EXTRA}")
        self._file, self._rest, self._frame = file, b"", None

    def __enter__(self) -> "_ZstdFile":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, _: int) -> bytes:
        """The next bytes; EOFError where the file ends too early."""
        while packed := self._rest or self._file.read(4096):  # a few bytes may hold megabytes
            frame: Any = self._frame or zstandard.ZstdDecompressor().decompressobj()
            found: bytes = frame.decompress(packed)
            self._rest, self._frame = frame.unused_data, None if frame.eof else frame
            if found:
                return found
        if self._frame is not None:
            raise EOFError("the file ends inside a zstd frame")
        return b""


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": _ZstdFile,
}
GIB = 1 << 30
LIMIT_VARIABLE, LIMIT_GIB = "FLATGD_MAX_FILE_GIB", 2.0
_MAGIC_BYTES = {
    b"\x1f\x8b": ".gz",
    b"\xfd7zXZ\x00": ".xz",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
}
_UNSUPPORTED = {
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
    b"ARROW1": "an Arrow file; convert it to JSON lines first: "
    "datasets.Dataset.from_file(FILE).to_json('rows.jsonl')",
    b"PK\x03\x04": "a ZIP archive or an Excel sheet; unzip it, or save it as CSV",
}


def unpacked_name(name: str) -> str:
    """A file name without its compression suffix.

    >>> unpacked_name("rows.jsonl.gz")
    'rows.jsonl'
    """
    stem, _, last = name.rpartition(".")
    return stem if f".{last.lower()}" in DECOMPRESSORS else name


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, plain or compressed.

    Raises DataError if it cannot be read, or if it is larger than the limit after decompression:
    2 GiB, or FLATGD_MAX_FILE_GIB. A small compressed file can hold more than the memory does.
    """
    limit = limit_gib()
    try:
        with path.open("rb") as file:
            raw = _read_up_to(file, limit, path, "is larger than")
        for magic, reason in _UNSUPPORTED.items():
            if raw.startswith(magic):
                raise DataError([Problem(str(path), 0, reason)])
        found = (kind for magic, kind in _MAGIC_BYTES.items() if raw.startswith(magic))
        kind = path.suffix.lower() if path.suffix.lower() in DECOMPRESSORS else next(found, None)
        if kind:
            with DECOMPRESSORS[kind](BytesIO(raw)) as file:
                raw = _read_up_to(file, limit, path, "decompresses to more than")
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError([Problem(str(path), 0, "no such file")]) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError([Problem(str(path), line, "not UTF-8; convert the file first")]) from None
    except MemoryError:
        reason = "does not fit into memory; split the file"
        raise DataError([Problem(str(path), 0, reason)]) from None
    except _BROKEN as error:
        raise DataError([Problem(str(path), 0, f"cannot be read: {error}")]) from None
    if not text.strip():
        raise DataError([Problem(str(path), 0, "the file is empty")])
    return text


def limit_gib() -> float:
    """The largest file that is read, in GiB. DataError if the environment gives no number > 0."""
    given = os.environ.get(LIMIT_VARIABLE, str(LIMIT_GIB))
    try:
        limit = float(given)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        reason = f"expected a number of GiB above 0, got {given!r}"
        raise DataError([Problem(LIMIT_VARIABLE, 0, reason)])
    return limit


def _read_up_to(file: BinaryIO, limit: float, path: Path, verb: str) -> bytearray:
    raw = bytearray()
    while chunk := file.read(1 << 20):
        raw += chunk
        if len(raw) <= limit * GIB:
            continue
        raise DataError([Problem(str(path), 0, too_large(limit, verb))])
    return raw


def too_large(limit: float, verb: str) -> str:
    """Why a file above the limit is not read, and what to do."""
    return (
        f"{verb} {limit:g} GiB; split the file, or raise the limit with "
        f"{LIMIT_VARIABLE}={2 * limit:g}"
    )
