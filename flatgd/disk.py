"""How much room a run's folder takes, from a checked recipe alone.

    models       float32 weights of each model that is trained or merged, or its adapter, and its
                 snapshots, once a seed; trained judges
    states       the experts' states of an `expert_cache`, taken for rows of full length
    text         replies and scores, a quarter of a kilobyte each
    checkpoints  of the training under way: the last two and the one that is being written, each
                 with Adam's two moments

Nearly an upper bound: entries that differ and yet share files are counted apart.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from transformers import AutoModel

from flatgd.check import training_config
from flatgd.data.mixture import Sets
from flatgd.memory import adapter_bytes, on_meta, size, weight_bytes
from flatgd.methods import METHODS, Clean, Method
from flatgd.models import load_config
from flatgd.plan import answered
from flatgd.recipe import EXPERTS, Recipe
from flatgd.training.checkpoints import KEPT

A_REPLY = 256
BESIDES = 4 * 2**20  # tokenizer and logs of each model, report, linear judge


class Disk(NamedTuple):
    """Bytes."""

    kept: float
    """When all is done."""
    most: float
    """While it runs."""

    def __str__(self) -> str:
        return f"up to {size(self.kept)}, {size(self.most)} while it runs"


def predicted(recipe: Recipe, sets: Sets) -> Disk:
    """The room that `flatgd run` takes; studies come on top."""
    backbone = on_meta(load_config(recipe.backbone))
    expert = on_meta(load_config(recipe.expert_backbone)) if recipe.expert_backbone else backbone
    kept = checkpoints = states = 0.0
    seen = []
    for name in (*EXPERTS, *recipe.methods):
        kind = Clean if name in EXPERTS else METHODS[recipe.kind_of(name)]
        overrides = recipe.overrides(name)
        model = expert if name in EXPERTS else backbone
        of_own = name if name == "toxic_expert" else recipe.methods.get(name)
        if (twin := (model, kind, overrides, of_own or None)) in seen:  # clean expert and clean
            continue
        seen.append(twin)
        if not issubclass(kind, Method):
            kept += weight_bytes(model)
            continue
        config = training_config(recipe, overrides, recipe.output, kind)
        lora = config.lora_rank
        trained = adapter_bytes(model, lora, config.lora_targets) if lora else weight_bytes(model)
        kept += (1 + config.snapshots) * trained
        if config.save_strategy != "no":
            stay = (config.save_total_limit or KEPT) + 1
            checkpoints = max(checkpoints, stay * 3 * trained)
        if config.expert_cache and kind.needs:
            width = expert.get_output_embeddings().weight.shape[1]
            states = 2.0 * len(sets.policy) * recipe.max_reply_tokens * width * 4
    judges = [*recipe.judges, recipe.sample.judge]
    trained_judges = [load_config(str(j.model)) for j in judges if j.kind == "trained"]
    kept += sum(weight_bytes(on_meta(config, AutoModel)) for config in trained_judges)
    replies = len(answered(recipe, sets)) * recipe.generate.samples + len(sets.test)
    kept += len(recipe.models) * (replies * A_REPLY + BESIDES)
    kept = recipe.seeds * (kept + states)
    return Disk(kept, kept + checkpoints)


def free(folder: Path) -> str:
    """What is left where `folder` is or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return size(shutil.disk_usage(there).free)
