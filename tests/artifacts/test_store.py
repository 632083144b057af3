"""Finished work is kept, changed work redone, like work shared, half-done work gone on with."""

from pathlib import Path

import pytest

from flatgd.artifacts.store import ArtifactStore, fingerprint_of


def writer(text: str, calls: list[str]):  # type: ignore[no-untyped-def]
    def build(path: Path) -> None:
        calls.append(text)
        path.mkdir()
        (path / "out.txt").write_text(text)

    return build


def test_kept_redone_and_reused(tmp_path: Path) -> None:
    stages, calls = ArtifactStore(tmp_path), []
    assert stages.get_or_build("a/one", "k1", writer("1", calls)) == "built"
    assert stages.get_or_build("a/one", "k1", writer("2", calls)) == "kept"
    assert stages.get_or_build("b/two", "k1", writer("3", calls)) == "reused"
    assert (tmp_path / "b/two/out.txt").read_text() == "1"
    assert stages.get_or_build("a/one", "k2", writer("4", calls)) == "built"
    assert (tmp_path / "a/one/out.txt").read_text() == "4"
    assert (tmp_path / "b/two/out.txt").read_text() == "1"
    assert calls == ["1", "4"]


def test_a_build_that_fails_leaves_the_old_output_and_is_built_again(tmp_path: Path) -> None:
    stages, calls = ArtifactStore(tmp_path), []
    stages.get_or_build("one", "k1", writer("old", calls))

    def fails(path: Path) -> None:
        path.mkdir()
        (path / "half.txt").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stages.get_or_build("one", "k2", fails)
    assert (tmp_path / "one/out.txt").read_text() == "old"

    def goes_on(path: Path) -> None:
        assert (path / "half.txt").exists()  # what was there already is handed back
        (path / "out.txt").write_text("new")

    assert stages.get_or_build("one", "k2", goes_on) == "built"
    assert (tmp_path / "one/out.txt").read_text() == "new"


def test_half_done_work_of_another_key_is_removed(tmp_path: Path) -> None:
    stages = ArtifactStore(tmp_path)

    def fails(path: Path) -> None:
        path.mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        stages.get_or_build("one", "k1", fails)
    stages.get_or_build("one", "k2", writer("2", []))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".manifests", "one"]


def test_deleted_output_is_made_again(tmp_path: Path) -> None:
    stages = ArtifactStore(tmp_path)

    def file(path: Path) -> None:
        path.write_text("x")

    stages.get_or_build("f.jsonl", "k", file)
    (tmp_path / "f.jsonl").unlink()
    assert stages.get_or_build("f.jsonl", "k", file) == "built"


def test_keys_tell_contents_apart() -> None:
    assert fingerprint_of("a", {"x": 1, "y": 2}) == fingerprint_of("a", {"y": 2, "x": 1})
    assert fingerprint_of("a") != fingerprint_of("b")
    assert fingerprint_of("a", "b") != fingerprint_of("ab")
