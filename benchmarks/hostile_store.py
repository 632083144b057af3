"""Accidents in a run's folder: damaged manifests, files that are not ours, a full disk."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.table import NotTriedError
from flatgd.artifacts.store import ArtifactStore
from flatgd.config.loading import load_recipe
from flatgd.errors import FlatGDError
from flatgd.io.files import atomic_folder
from flatgd.pipeline.context import model_fingerprint
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.pipeline import Pipeline
from flatgd.pipeline.plan import Plan

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
    """A small file system."""
    for size in ("64k", "2m"):
        folder = place / size
        folder.mkdir()
        with mounted(folder, f"size={size}"):
            done = demo(place, f"output={folder / 'run'}")
        if done.returncode != 2 or "Traceback" in done.stderr + done.stdout:
            return f"{size}: exit {done.returncode}: {done.stderr[-300:]}"
        if not any(word in done.stderr for word in ("space", "free", "room")):
            return f"{size}: no word of the disk: {done.stderr[-300:]}"
    return None


def a_read_only_disk(place: Path) -> str | None:
    with mounted(place, "size=1m,ro"):
        done = demo(place, f"output={place / 'run'}")
    if done.returncode != 2 or "Traceback" in done.stderr + done.stdout:
        return f"exit {done.returncode}: {done.stderr[-300:]}"
    return None if "read-only" in done.stderr.lower() else f"no word of it: {done.stderr[-300:]}"


def an_export_beside_a_partial_folder(place: Path) -> str | None:
    """`export --to thesis` beside the user's own `thesis.partial/`."""
    mine = place / "thesis.partial/chapter.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with atomic_folder(place / "thesis") as folder:
        (folder / "model.txt").write_text("x")
    return None if mine.exists() and (place / "thesis/model.txt").exists() else "it was deleted"


def a_method_named_partial(place: Path) -> str | None:
    store = ArtifactStore(place)
    store.get_or_build("methods/x.partial", "k1", write("1"))
    with contextlib.suppress(FlatGDError):
        store.get_or_build("methods/x", "k2", write("2"))
    if not (place / "methods/x.partial/out.txt").exists():
        return "methods/x.partial was deleted"
    methods = "methods={x: {method: clean}, x.partial: {method: clean}}"
    try:
        load_validated(load_recipe(DEMO, [methods, f"output={place / 'run'}"]))
    except FlatGDError as error:
        return None if "must not end in .partial" in str(error) else str(error)
    return "the recipe was accepted"


def the_base_of_an_adapter_counts(place: Path) -> str | None:
    base, adapter = place / "base", place / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "config.json").write_text("{}")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    before = model_fingerprint(str(adapter))
    (base / "model.safetensors").write_text("x")
    return None if model_fingerprint(str(adapter)) != before else "a changed base does not count"


def precision_from_the_environment_counts(place: Path) -> str | None:
    recipe = load_recipe(DEMO, [f"output={place / 'run'}"])
    sets = load_validated(recipe)
    found = set()
    for precision in ("no", "bf16"):
        os.environ["ACCELERATE_MIXED_PRECISION"] = precision
        try:
            found.add(Plan(recipe, sets, model_fingerprint).fingerprint("flatgd"))
        finally:
            del os.environ["ACCELERATE_MIXED_PRECISION"]
    return None if len(found) == 2 else "bf16 from the environment does not count"


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory on `folder`. Raises NotTriedError where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        raise NotTriedError("needs root and mount")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


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
    ("the base of an adapter counts", the_base_of_an_adapter_counts),
    ("precision from the environment counts", precision_from_the_environment_counts),
    ("export beside NAME.partial", an_export_beside_a_partial_folder),
    ("a method named x.partial", a_method_named_partial),
    ("a full disk", a_full_disk),
    ("a read-only disk", a_read_only_disk),
]
