"""Failures that no part of flatgd expects end with one line, and never with a traceback."""

import errno
import os
import sys
from pathlib import Path

import pytest

from flatgd.cli import main as command_line
from flatgd.cli.failures import describe


def test_a_full_disk_names_the_path_and_what_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "not/there/yet"
    told = describe(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)))
    assert told.startswith(f"cannot write {path}: no space left on device (")
    assert "MB free). Make room. Finished artifacts are kept: run the same command" in told


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_path_without_access_is_named(number: int) -> None:
    told = describe(OSError(number, os.strerror(number), "/data/run"))
    assert told.startswith("no access to /data/run: ")
    assert told.endswith("Check its permissions, or name another path.")


def test_a_full_disk_as_libraries_report_it() -> None:
    told = describe(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert told.startswith("cannot write: No space left on device. Make room, or name another")


def test_memory() -> None:
    assert describe(MemoryError()).startswith("out of memory. Lower batch sizes")


def test_anything_else_leaves_a_log_that_others_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("what nobody expected\nand more")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(command_line, "app", broken)
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("flatgd: unexpected ValueError: what nobody expected. The traceback is")
    assert "Traceback" not in shown
    (log,) = tmp_path.iterdir()
    assert str(log) in shown
    assert "in broken" in log.read_text()
    if sys.platform != "win32":
        assert log.stat().st_mode & 0o077 == 0
