"""What every stage of a run works with: the recipe, its data, its folder, models on demand."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from flatgd.artifacts import layout
from flatgd.artifacts.recipe_inputs import inputs_of
from flatgd.artifacts.store import ArtifactStore, fingerprint_of, versions
from flatgd.config.loading import as_text
from flatgd.config.names import BACKBONE
from flatgd.config.recipe import Recipe
from flatgd.data.sets import Sets
from flatgd.errors import UsageError
from flatgd.io.files import LOCK_FILES, file_sha256, lock_folder
from flatgd.methods import Director, ExpertGuide
from flatgd.models.adapters import load_together
from flatgd.models.dialogue_format import DialogueFormat
from flatgd.models.encoded_rows import RowEncoder
from flatgd.models.guides import Guide
from flatgd.models.loading import base_of, load_config, on_device, quiet_transformers
from flatgd.models.speaker import Speaker, load_speaker
from flatgd.pipeline.loader import load_validated
from flatgd.pipeline.plan import Plan
from flatgd.runtime import distributed, threads
from flatgd.runtime.display import Display


class BuildResult(NamedTuple):
    """One line for the terminal, and the cost that the artifact's manifest keeps."""

    summary: str
    cost: Mapping[str, Any] = MappingProxyType({})


class Context:
    """One recipe in its output folder.

    `sets` and `parent` are those of a variant: a run below another run's folder, with other policy
    data or another seed. It takes from its parent every artifact with the same fingerprint.
    Raises RecipeError for faults of the recipe, UsageError where the folder cannot be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        display: Display | None = None,
        sets: Sets | None = None,
        parent: "Context | None" = None,
    ):
        quiet_transformers()
        self.recipe = recipe
        self.display = display or Display(quiet=not distributed.is_first())
        self.root = recipe.output
        self.store: ArtifactStore = ArtifactStore(self.root, parent.store if parent else None)
        self.sets = sets or load_validated(recipe)
        distributed.meet()
        distributed.of_first(lambda: self._claim(parent is not None))
        self.model_fingerprint: Callable[[str], str] = (
            parent.model_fingerprint if parent else cache(model_fingerprint)
        )
        self.encoder: RowEncoder = parent.encoder if parent else RowEncoder(self.sets.policy)
        self.plan = Plan(recipe, self.sets, self.model_fingerprint)
        self._inputs = inputs_of(recipe)
        if parent is None and (shortage := threads.warning()):
            self.display.line("threads", f"warning: {shortage}")
        self._has_shown_versions = False
        self._has_all_rows = parent is None or self.sets.policy is parent.sets.policy

    def _claim(self, is_variant: bool) -> None:
        """Make the run's folder and lock it. Raises UsageError for a folder with files of others,
        InUseError if another process has the lock."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            manifests = self.root / layout.MANIFESTS
            is_run = manifests.is_dir() or (self.root / layout.RECIPE).exists()
            if not is_run and any(path.name not in LOCK_FILES for path in self.root.iterdir()):
                raise UsageError(
                    f"output {self.root} is not empty and holds no run of flatgd. "
                    "Choose another folder."
                )
            manifests.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"output {self.root}: {error.strerror}; name another folder") from None
        if not is_variant:
            self._lock = lock_folder(self.root)

    def build(
        self,
        artifact: str,
        fingerprint: str,
        build: Callable[[Path], BuildResult],
        depends_on: Sequence[str] = (),
        collective: bool = False,
    ) -> None:
        """`ArtifactStore.get_or_build`, shown on the terminal."""
        results: list[BuildResult] = []

        def record(path: Path) -> dict[str, Any]:
            results.append(build(path))
            return dict(results[0].cost)

        if distributed.is_first():
            self._show_why_rebuilt(artifact, fingerprint)
        begun = time.monotonic()
        outcome = self.store.get_or_build(
            artifact, fingerprint, record, depends_on, collective, self._inputs.get(artifact)
        )
        if not distributed.is_first():
            return
        if outcome != "kept" and self._has_all_rows:
            (self.root / layout.RECIPE).write_text(as_text(self.recipe))
        if outcome == "built":
            seconds = time.monotonic() - begun
            self.display.line(artifact, f"{results[0].summary} ({seconds:.0f} s)")
        elif outcome == "reused":
            self.display.line(artifact, "reused (same inputs)")
        else:
            self._show_other_versions(artifact)

    def _show_why_rebuilt(self, artifact: str, fingerprint: str) -> None:
        if self.store.has_changed(artifact, fingerprint):
            self.display.line(artifact, "inputs changed; rebuilding")
        elif error := self.store.integrity_error(artifact):
            self.display.line(artifact, f"{error}; rebuilding")

    def _show_other_versions(self, artifact: str) -> None:
        """Once a run: that kept artifacts were built with other versions of packages."""
        now, then = versions(), self.store.built_with(artifact)
        changed = [f"{p} {then[p]} (now {now[p]})" for p in now if then.get(p, now[p]) != now[p]]
        if changed and not self._has_shown_versions:
            self._has_shown_versions = True
            text = (
                f"built with {', '.join(changed)}; kept. Delete it to rebuild with these versions"
            )
            self.display.line(artifact, text)

    def load_model(self, path: str) -> tuple[Any, DialogueFormat]:
        """A model in float32 on its device, and how it reads a dialogue."""
        found = load_speaker(path, self.recipe.layout, torch.float32)
        return found.model, found.dialogue_format

    def load_needed(self, name: str, policy: Any = None) -> dict[str, Any]:
        """The models that a system is built with. They share what weights they can, also with a
        frozen `policy`."""
        paths = {
            needed: self.plan.model(needed).path for needed in self.plan.model(name).kind.needs
        }
        dtypes = {needed: self.plan.dtype(needed) for needed in paths}
        loaded = load_together(paths, policy, dtypes)
        return {needed: on_device(model) for needed, model in loaded.items()}

    def speaker(self, name: str) -> Speaker:
        """A model of the recipe, ready to generate and to score."""
        planned = self.plan.model(name)
        guide: Guide | None = None
        if issubclass(planned.kind, ExpertGuide):
            guide = planned.kind.build(self.load_needed(name), None, planned.options)
        elif issubclass(planned.kind, Director):
            guide = planned.kind.guide(Path(planned.path), planned.options)
        path = planned.path if planned.has_own_weights else planned.base
        return load_speaker(path, self.recipe.layout, self.plan.dtype(name), guide)

    def artifacts_of(self, name: str) -> list[str]:
        """The artifacts that a model's replies depend on."""
        return [] if name == BACKBONE else [layout.model(name)]


def model_fingerprint(name: str) -> str:
    """A digest of every file of a model folder and of its base, if it is an adapter; for a hub
    model, of its name and commit. Hidden files and the model card do not count."""
    folder = Path(name)
    if not folder.is_dir():
        return fingerprint_of(name, getattr(load_config(name), "_commit_hash", None))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [(path.relative_to(folder), path) for path in paths if path.name != layout.CARD]
    shown = [(n, path) for n, path in files if not any(part[0] == "." for part in n.parts)]
    base = base_of(name)
    return fingerprint_of(
        [(str(relative), file_sha256(path)) for relative, path in shown],
        base and model_fingerprint(base),
    )
