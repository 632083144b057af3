"""Finished work is kept, changed work redone, like work shared, interrupted work resumed."""

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from flatgd.artifacts.store import ArtifactStore, fingerprint_of
from flatgd.errors import UsageError


def writer(text: str, calls: list[str]):  # type: ignore[no-untyped-def]
    def build(path: Path) -> None:
        calls.append(text)
        path.mkdir()
        (path / "out.txt").write_text(text)

    return build


def test_kept_redone_and_reused(tmp_path: Path) -> None:
    store, calls = ArtifactStore(tmp_path), []
    assert store.get_or_build("a/one", "k1", writer("1", calls)) == "built"
    assert store.get_or_build("a/one", "k1", writer("2", calls)) == "kept"
    assert store.get_or_build("b/two", "k1", writer("3", calls)) == "reused"
    assert (tmp_path / "b/two/out.txt").read_text() == "1"
    assert store.get_or_build("a/one", "k2", writer("4", calls)) == "built"
    assert (tmp_path / "a/one/out.txt").read_text() == "4"
    assert (tmp_path / "b/two/out.txt").read_text() == "1"
    assert calls == ["1", "4"]


def test_a_build_that_fails_leaves_the_old_output_and_is_built_again(tmp_path: Path) -> None:
    store, calls = ArtifactStore(tmp_path), []
    store.get_or_build("one", "k1", writer("old", calls))

    def fails(path: Path) -> None:
        path.mkdir()
        (path / "half.txt").write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.get_or_build("one", "k2", fails)
    assert (tmp_path / "one/out.txt").read_text() == "old"

    def resumes(path: Path) -> None:
        assert (path / "half.txt").exists()  # what was there already is handed back
        (path / "out.txt").write_text("new")

    assert store.get_or_build("one", "k2", resumes) == "built"
    assert (tmp_path / "one/out.txt").read_text() == "new"


def test_half_done_work_of_another_fingerprint_is_removed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def fails(path: Path) -> None:
        path.mkdir()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.get_or_build("one", "k1", fails)
    store.get_or_build("one", "k2", writer("2", []))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".manifests", "one"]


def test_deleted_output_is_made_again(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    def file(path: Path) -> None:
        path.write_text("x")

    store.get_or_build("f.jsonl", "k", file)
    (tmp_path / "f.jsonl").unlink()
    assert store.get_or_build("f.jsonl", "k", file) == "built"


def test_keys_tell_contents_apart() -> None:
    assert fingerprint_of("a", {"x": 1, "y": 2}) == fingerprint_of("a", {"y": 2, "x": 1})
    assert fingerprint_of("a") != fingerprint_of("b")
    assert fingerprint_of("a", "b") != fingerprint_of("ab")


def test_a_flipped_bit_in_a_manifest_means_building_again(tmp_path: Path) -> None:
    store, calls = ArtifactStore(tmp_path), []
    store.get_or_build("one", "k1", writer("1", calls))
    manifest = tmp_path / ".manifests/one.json"
    for damaged in (b"\xff\xfe{", b'{"name": ', b"[1, 2]", b""):
        manifest.write_bytes(damaged)
        again = ArtifactStore(tmp_path)
        assert again.get_or_build("one", "k1", writer("2", calls)) == "built"
        assert again.fingerprint("one") == "k1"
    assert calls == ["1", "2", "2", "2", "2"]


def test_runs_of_other_formats_are_refused(tmp_path: Path) -> None:
    ArtifactStore(tmp_path).get_or_build("one", "k1", writer("1", []))
    path = tmp_path / ".manifests/one.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256"], manifest["format"]
    sealed = {**manifest, "format": 99}
    sealed["sha256"] = hashlib.sha256(json.dumps(sealed, sort_keys=True).encode()).hexdigest()
    for other, said in ((sealed, "manifests of format 99"), (manifest, "no format number")):
        path.write_text(json.dumps(other))
        with pytest.raises(UsageError, match=said):
            ArtifactStore(tmp_path)
    (tmp_path / "old/.stages").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no format number.*reads format 1.*another output"):
        ArtifactStore(tmp_path / "old")


def test_what_flatgd_did_not_write_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "experts/clean").mkdir(parents=True)
    mine = tmp_path / "experts/clean/thesis.txt"
    mine.write_text("mine")
    store = ArtifactStore(tmp_path)
    with pytest.raises(UsageError, match=r"experts/clean was not written by flatgd"):
        store.get_or_build("experts/clean", "k1", writer("1", []))
    assert mine.read_text() == "mine"
    store.get_or_build("methods/x", "k1", writer("1", []))
    other = tmp_path / "methods/x/notes.txt"
    other.write_text("mine")
    with pytest.raises(UsageError, match=r"notes.txt was not written by flatgd.*methods/x would"):
        store.get_or_build("methods/x", "k2", writer("2", []))
    assert other.read_text() == "mine"
    other.unlink()
    assert store.get_or_build("methods/x", "k2", writer("2", [])) == "built"


def test_an_artifact_named_partial_is_not_deleted(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.get_or_build("methods/x.partial", "k1", writer("1", []))
    with pytest.raises(UsageError, match=r"x.partial was not written .* building methods/x would"):
        store.get_or_build("methods/x", "k2", writer("2", []))
    assert (tmp_path / "methods/x.partial/out.txt").read_text() == "1"


def test_a_build_interrupted_between_rename_and_manifest_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("flatgd.artifacts.store.file_digests", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.get_or_build("one", "k1", writer("1", []))
    assert (tmp_path / "one").exists()
    assert ArtifactStore(tmp_path).get_or_build("one", "k1", writer("2", [])) == "built"


def test_versions_are_recorded(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.get_or_build("one", "k1", writer("1", []))
    assert store.built_with("one") == {name: version(name) for name in ("torch", "transformers")}


def test_every_flipped_bit_of_a_manifest_means_building_again(tmp_path: Path) -> None:
    ArtifactStore(tmp_path).get_or_build("one", "k1", writer("1", []))
    path = tmp_path / ".manifests/one.json"
    whole = path.read_bytes()
    for place in range(0, len(whole) - 1, 7):
        for bit in (0, 3, 5):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            assert ArtifactStore(tmp_path).get_or_build("one", "k1", writer("1", [])) == "built"
            path.write_bytes(whole)


def test_a_card_is_not_part_of_an_artifact(tmp_path: Path) -> None:
    """It is written after the artifact, also into one that shares its files."""
    store = ArtifactStore(tmp_path)
    store.get_or_build("methods/clean", "k1", writer("1", []))
    (tmp_path / "methods/clean/README.md").write_text("card")
    assert store.get_or_build("methods/baseline", "k1", writer("2", [])) == "reused"
    assert not (tmp_path / "methods/baseline/README.md").exists()
    (tmp_path / "methods/baseline/README.md").write_text("another card")
    assert ArtifactStore(tmp_path).integrity_error("methods/baseline") is None
    assert (tmp_path / "methods/clean/README.md").read_text() == "card"


def test_only_recorded_files_are_removed(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    folder = tmp_path / "report/figures"
    folder.mkdir(parents=True)
    for name in ("ours.svg", "mine.svg"):
        (folder / name).write_text("<svg/>")
    store.record("report/figures", "k", {"ours.svg"})
    store.remove_recorded("report/figures")
    assert [path.name for path in folder.iterdir()] == ["mine.svg"]


def test_a_deleted_input_does_not_make_an_artifact_stale(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.get_or_build("experts/toxic", "k1", writer("1", []))
    store.get_or_build("methods/x", "k2", writer("2", []), ["experts/toxic"])
    shutil.rmtree(tmp_path / "experts/toxic")
    assert not store.is_stale("methods/x")
    store.get_or_build("experts/toxic", "k3", writer("3", []))
    assert store.is_stale("methods/x")


def test_a_damaged_note_of_an_unfinished_build_is_no_crash(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    (tmp_path / "one.partial").mkdir()
    (tmp_path / "one.partial.key").write_bytes(b"\xff\xfe")
    assert store.get_or_build("one", "k1", writer("1", [])) == "built"
