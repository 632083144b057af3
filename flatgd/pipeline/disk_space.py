"""How much disk space a run takes.

    models       float32 weights of each trained or merged model, or its adapter, and its snapshots,
                 for each seed; trained judges
    states       the experts' states, where they are cached, as if every row had full length
    text         replies and scores, a quarter of a kilobyte each
    checkpoints  of the training under way: the last two and the one being written, each with
                 Adam's two moments

The estimate is nearly an upper bound: it counts entries that share files apart.
"""

from pathlib import Path
from typing import NamedTuple

from transformers import AutoModel

from flatgd.config.names import EXPERTS
from flatgd.io.files import free_bytes
from flatgd.judges.embedding import MOST_KEPT, feature_bytes
from flatgd.methods import METHODS, Clean, Merge, Method
from flatgd.models.loading import load_config, on_meta
from flatgd.pipeline.plan import Plan, histories_to_answer, needs_experts, states_bytes
from flatgd.pipeline.training_memory import adapter_bytes, size, weight_bytes
from flatgd.training.checkpoints import CHECKPOINTS_KEPT

REPLY_BYTES = 256
OTHER_BYTES = 4 * 2**20  # for each model: tokenizer and logs; report, linear judge


class Disk(NamedTuple):
    """Disk space of a run, in bytes."""

    kept: float
    """When the run is finished."""
    peak: float
    """While it runs."""

    def __str__(self) -> str:
        return f"up to {size(self.kept)}, {size(self.peak)} while it runs"


def disk_of(plan: Plan) -> Disk:
    """Disk space that `flatgd run` takes, without studies."""
    recipe, sets = plan.recipe, plan.sets
    backbone = on_meta(load_config(recipe.backbone))
    expert = on_meta(load_config(recipe.expert_backbone)) if recipe.expert_backbone else backbone
    kept = checkpoints = states = 0.0
    seen = []
    for name in (*EXPERTS, *recipe.methods):
        kind = Clean if name in EXPERTS else METHODS[recipe.kind_of(name)]
        overrides = recipe.overrides(name)
        model = expert if name in EXPERTS else backbone
        of_own = name if name == "toxic_expert" else recipe.methods.get(name)
        if (same := (model, kind, overrides, of_own or None)) in seen:  # clean expert and clean
            continue
        seen.append(same)
        if not issubclass(kind, Method):
            kept += weight_bytes(model) if issubclass(kind, Merge) else 0
            continue
        config = plan.config(name, recipe.output)
        lora = config.lora_rank
        trained = adapter_bytes(model, lora, config.lora_targets) if lora else weight_bytes(model)
        kept += (1 + config.snapshots) * trained
        if config.save_strategy != "no":
            stay = (config.save_total_limit or CHECKPOINTS_KEPT) + 1
            checkpoints = max(checkpoints, stay * 3 * trained)
        if needs_experts(kind) and config.expert_cache:
            states = states_bytes(recipe, sets)
    judges = [*recipe.judges, recipe.sample.judge]
    trained_judges = [load_config(str(j.model)) for j in judges if j.kind == "trained"]
    kept += sum(weight_bytes(on_meta(config, AutoModel)) for config in trained_judges)
    replies = len(histories_to_answer(recipe, sets)) * recipe.generate.samples + len(sets.test)
    kept += len(recipe.models) * (replies * REPLY_BYTES + OTHER_BYTES)
    texts = min(MOST_KEPT, len(sets.judge) + len(recipe.models) * replies)
    encoders = [load_config(str(j.model)) for j in judges if j.kind == "embedding"]
    kept += sum(texts * feature_bytes(config) for config in encoders)
    kept = recipe.seeds * (kept + states)
    return Disk(kept, kept + checkpoints)


def free_space(folder: Path) -> str:
    """Free disk space where `folder` is or will be."""
    return size(free_bytes(folder))
