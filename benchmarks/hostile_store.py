"""Accidents in a run's folder: damaged manifests, files that are not ours, a full disk."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flatgd.artifacts.store import ArtifactStore
from flatgd.errors import FlatGDError
from flatgd.pipeline.context import model_fingerprint

ARTIFACT = "experts/clean"
DEMO = Path(__file__).parent.parent / "recipes/demo.yaml"


def write(text: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.mkdir()
        (path / "out.txt").write_text(text)

    return build


def flipped_bit_in_a_manifest(place: Path) -> str | None:
    """Every bit of a manifest in turn; a damaged one means building again."""
    ArtifactStore(place).get_or_build(ARTIFACT, "k", write("1"))
    (manifest,) = (place / ".manifests").glob("*.json")
    whole = manifest.read_bytes()
    for place_of_bit in range(8 * (len(whole) - 1)):  # the last byte is a line's end
        damaged = bytearray(whole)
        damaged[place_of_bit // 8] ^= 1 << place_of_bit % 8
        manifest.write_bytes(damaged)
        try:
            outcome = ArtifactStore(place).get_or_build(ARTIFACT, "k", write("1"))
        except Exception as error:
            return f"bit {place_of_bit}: {type(error).__name__}: {error}"
        if outcome != "built":
            return f"bit {place_of_bit}: {outcome}"
        manifest.write_bytes(whole)
    return None


def files_of_others_are_kept(place: Path) -> str | None:
    """A user's file where an artifact, its `.partial` or a part of it would be."""
    for name in (ARTIFACT, f"{ARTIFACT}.partial"):
        root = place / name.replace("/", "_")
        mine = root / name / "thesis.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("mine")
        with contextlib.suppress(FlatGDError):
            ArtifactStore(root).get_or_build(ARTIFACT, "k", write("1"))
        if not mine.exists():
            return f"{name}/thesis.txt was deleted"
    store = ArtifactStore(place / "later")
    store.get_or_build(ARTIFACT, "k1", write("1"))
    notes = place / "later" / ARTIFACT / "notes.txt"
    notes.write_text("mine")
    with contextlib.suppress(FlatGDError):
        store.get_or_build(ARTIFACT, "k2", write("2"))
    return None if notes.exists() else "notes.txt was deleted"


def every_file_of_a_model_counts(place: Path) -> str | None:
    (place / "config.json").write_text("{}")
    before = model_fingerprint(str(place))
    for name in ("weights.bin", "code.py", "additional_chat_templates/a.jinja"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        if model_fingerprint(str(place)) == before:
            return f"{name} does not count"
        before = model_fingerprint(str(place))
    return None


def a_run_in_a_folder_with_other_files(place: Path) -> str | None:
    """`output: .` beside a user's own report and experts."""
    for name in ("report/figures/plot.svg", "experts/clean/notes.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
    done = demo(place, f"output={place}")
    if done.returncode != 2 or "holds no run of flatgd" not in done.stderr:
        return f"exit {done.returncode}: {done.stderr[-200:]}"
    kept = all((place / name).exists() for name in ("report/figures/plot.svg", "experts/clean"))
    return None if kept else "files were deleted"


def a_full_disk(place: Path) -> str | None:
    """A small file system (needs root, else not tried)."""
    if os.geteuid() != 0:
        return None
    for size in ("64k", "2m"):
        folder = place / size
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True).returncode:
            return None  # not allowed here
        try:
            done = demo(place, f"output={folder / 'run'}")
        finally:
            subprocess.run(["umount", str(folder)], check=True)
        if done.returncode != 2 or "Traceback" in done.stderr + done.stdout:
            return f"{size}: exit {done.returncode}: {done.stderr[-300:]}"
        if not any(word in done.stderr for word in ("space", "free", "room")):
            return f"{size}: no word of the disk: {done.stderr[-300:]}"
    return None


def demo(place: Path, *fields: str) -> subprocess.CompletedProcess[str]:
    """`flatgd run` in a process of its own: the demo's recipe, cut to two steps."""
    short = ["train.max_steps=2", "generate.histories=2", "generate.samples=1", *fields]
    options = [part for field in short for part in ("--set", field)]
    return subprocess.run(
        [sys.executable, "-m", "flatgd", "run", str(DEMO), *options],
        capture_output=True,
        text=True,
        cwd=place,
    )


def a_damaged_kept_recipe(place: Path) -> str | None:
    """The recipe of the last command, damaged: the next command works all the same."""
    from flatgd.config.loading import load_recipe
    from flatgd.pipeline.pipeline import Pipeline

    pipeline = Pipeline(load_recipe(DEMO, [f"output={place / 'run'}"]))
    kept = place / "run/.manifests/recipe"
    for content in (b"{", b"\xff\xfe", b"[]", b'"x"', json.dumps({"seed": []}).encode()):
        kept.write_bytes(content)
        try:
            pipeline._show_changes()
        except Exception as error:
            return f"{content!r}: {type(error).__name__}: {error}"
    return None


CASES: list[tuple[str, Callable[[Path], str | None]]] = [
    ("one flipped bit in a manifest", flipped_bit_in_a_manifest),
    ("a damaged kept recipe", a_damaged_kept_recipe),
    ("files that are not ours", files_of_others_are_kept),
    ("output: a folder with other files", a_run_in_a_folder_with_other_files),
    ("every file of a model folder counts", every_file_of_a_model_counts),
    ("a full disk", a_full_disk),
]
