"""Finished work is kept, changed work redone, like work shared, half-done work gone on with."""

from pathlib import Path

import pytest

from flatgd.artifacts.store import Stages, key_of


def writer(text: str, calls: list[str]):  # type: ignore[no-untyped-def]
    def build(path: Path) -> None:
        calls.append(text)
        path.mkdir()
        (path / "out.txt").write_text(text)

    return build


def test_kept_redone_and_reused(tmp_path: Path) -> None:
    stages, calls = Stages(tmp_path), []
    assert stages.produce("a/one", "k1", writer("1", calls)) == "built"
    assert stages.produce("a/one", "k1", writer("2", calls)) == "kept"
    assert stages.produce("b/two", "k1", writer("3", calls)) == "reused"
    assert (tmp_path / "b/two/out.txt").read_text() == "1"
    assert stages.produce("a/one", "k2", writer("4", calls)) == "built"
    assert (tmp_path / "a/one/out.txt").read_text() == "4"
    assert (tmp_path / "b/two/out.txt").read_text() == "1"
    assert calls == ["1", "4"]


def test_a_build_that_fails_leaves_the_old_output_and_is_built_again(tmp_path: Path) -> None:
    stages, calls = Stages(tmp_path), []
    stages.produce("one", "k1", writer("old", calls))

    def fails(path: Path) -> None:
        path.mkdir()
        (path / "half.txt").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stages.produce("one", "k2", fails)
    assert (tmp_path / "one/out.txt").read_text() == "old"

    def goes_on(path: Path) -> None:
        assert (path / "half.txt").exists()  # what was there already is handed back
        (path / "out.txt").write_text("new")

    assert stages.produce("one", "k2", goes_on) == "built"
    assert (tmp_path / "one/out.txt").read_text() == "new"


def test_half_done_work_of_another_key_is_removed(tmp_path: Path) -> None:
    stages = Stages(tmp_path)

    def fails(path: Path) -> None:
        path.mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stages.produce("one", "k1", fails)
    stages.produce("one", "k2", writer("2", []))  # mkdir would raise were the folder still there
    assert sorted(p.name for p in tmp_path.iterdir()) == [".stages", "one"]


def test_deleted_output_is_made_again(tmp_path: Path) -> None:
    stages = Stages(tmp_path)

    def file(path: Path) -> None:
        path.write_text("x")

    stages.produce("f.jsonl", "k", file)
    (tmp_path / "f.jsonl").unlink()
    assert stages.produce("f.jsonl", "k", file) == "built"


def test_keys_tell_contents_apart() -> None:
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert key_of("a") != key_of("b")
    assert key_of("a", "b") != key_of("ab")
