"""Atomic writes, and OSErrors that become one line."""

import errno
from pathlib import Path

import pytest
from disks import file_size_limit

from flatgd.errors import UsageError
from flatgd.io.files import atomic_writer, file_digests, integrity_error, write_atomically, writing


def test_a_full_disk_is_one_line_with_the_free_space(tmp_path: Path) -> None:
    path = tmp_path / "x/y.txt"
    with (
        pytest.raises(
            UsageError, match=r"No space left on device \([\d,.]+ MB free\)\. Old kept\."
        ),
        writing(path, "Old kept."),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UsageError) as raised, writing(path):
        raise OSError(errno.EROFS, "Read-only file system")
    assert str(raised.value) == f"cannot write {path}: Read-only file system."


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_atomically(path, "old")
    with file_size_limit(10), pytest.raises(UsageError), writing(path):
        write_atomically(path, "new " * 10_000)
    assert path.read_text() == "old"
    with pytest.raises(KeyError), atomic_writer(path):
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]


def test_a_changed_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    found = file_digests(tmp_path)
    assert integrity_error(tmp_path, found) is None
    (tmp_path / "a").write_text("two")
    assert integrity_error(tmp_path, found) == "a has changed since it was saved"
    (tmp_path / "a").unlink()
    assert integrity_error(tmp_path, found) == "a is missing"
