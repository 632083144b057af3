"""How a command ends that fails: one clear line, and a log file for what nobody expected."""

import errno
import os
import re
import tempfile
import traceback
from pathlib import Path

from flatgd.io.files import free_bytes

# As libraries that are not written in Python report a full or read-only disk
_DISK = re.compile(r"No space left on device|Read-only file system|Disk quota exceeded", re.I)
_KEPT = "Finished artifacts are kept: run the same command again to resume"


def describe(error: BaseException) -> str:
    """One or two lines about an error that no part of flatgd has turned into its own."""
    if isinstance(error, MemoryError):
        return f"out of memory. Lower batch sizes or close other programs. {_KEPT}."
    if isinstance(error, OSError) and error.errno is not None:
        return _file_error(error)
    if found := _DISK.search(str(error)):
        return f"cannot write: {found[0]}. Make room, or name another output. {_KEPT}."
    return _unexpected(error)


def _file_error(error: OSError) -> str:
    reason = (error.strerror or type(error).__name__).lower()
    path = os.fsdecode(error.filename) if error.filename else "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = f"{free_bytes(Path(path)) / 2**20:,.0f}"
        return f"cannot write {path}: {reason} ({free} MB free). Make room. {_KEPT}."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"no access to {path}: {reason}. Check its permissions, or name another path."
    return f"{path}: {reason}. Check the path. {_KEPT}."


def _unexpected(error: BaseException) -> str:
    """The error's own first line, and where its traceback is."""
    line = str(error).strip().partition("\n")[0][:200]
    told = f"unexpected {type(error).__name__}{f': {line}' if line else ''}."
    try:
        handle, name = tempfile.mkstemp(prefix="flatgd-", suffix=".log")  # readable by its owner
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{told} Its traceback could not be written."
    return (
        f"{told} The traceback is in {name}. If no value of yours explains it, please report it "
        "with the output of `flatgd --version`."
    )
