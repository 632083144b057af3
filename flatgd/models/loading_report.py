"""Refuse models whose files lack weights: transformers would fill the gaps with random numbers.

`from_pretrained` only warns about a checkpoint that does not fit its architecture. The report that
it returns already leaves out tied weights and the weights that a model class declares as optional.
Everything else in it means that the model would compute something that nobody trained.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from flatgd.errors import ModelError

NAMES_SHOWN = 3
# `last_hidden_state` does not depend on the pooler, and many checkpoints carry an unused one
POOLER = re.compile(r"(^|\.)pooler\.")
# causal masks, which old versions of transformers saved as buffers
OLD_MASKS = re.compile(r"\battn\.masked_bias$")
WRAPPERS = ("_orig_mod.", "module.")  # torch.compile and DistributedDataParallel put these first


def refuse_incomplete(
    name: str, model: Any, report: Mapping[str, Any], needs: str = "model"
) -> None:
    """Raise ModelError unless the checkpoint at `name` has all weights of `model` and no others.

    `report` is what `from_pretrained(..., output_loading_info=True)` returns beside the model.
    `needs` says what is used of the model:

    model         all of it; every weight of the checkpoint must have its place
    classifier    all of it; heads for other tasks may be in the checkpoint
    body          the last hidden states; as classifier, and the pooler may be missing
    """
    missing = {key for key in report["missing_keys"] if needs != "body" or not POOLER.search(key)}
    unexpected = {key for key in report["unexpected_keys"] if not OLD_MASKS.search(key)}
    if needs != "model":
        unexpected = {key for key in unexpected if _is_own(model, key)}
    mismatched = {key for key, *_ in report["mismatched_keys"]}
    if faults := key_faults(missing, unexpected, mismatched):
        raise ModelError(
            f"{name!r}: its weights do not fit {type(model).__name__}: {faults}. "
            + _hint(missing, report["unexpected_keys"], needs)
        )


def key_faults(
    missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str] = ()
) -> str:
    """What is wrong with a checkpoint's weights, with the first names; "" if nothing.

    >>> key_faults(["b", "a", "c", "d"], ["x"])
    '4 missing (a, b, c, ...), which would be random numbers; 1 unexpected (x)'
    """
    kinds = (
        (missing, "missing", ", which would be random numbers"),
        (unexpected, "unexpected", ""),
        (mismatched, "of another shape", ""),
    )
    return "; ".join(
        f"{len(names):,} {kind} ({_first(names)}){effect}" for names, kind, effect in kinds if names
    )


def _first(names: Collection[str]) -> str:
    shown = sorted(names)[:NAMES_SHOWN]
    return ", ".join([*shown, "..."] if len(names) > len(shown) else shown)


def _is_own(model: Any, key: str) -> bool:
    """Whether a key belongs to the model's body or head, and not to a head for another task."""
    if POOLER.search(key):
        return False
    body = model.base_model
    if key.startswith(f"{body.base_model_prefix}."):
        return True
    parts = {name for module in (model, body) for name, _ in module.named_children()}
    return key.partition(".")[0] in parts


def _hint(missing: Collection[str], unexpected: Collection[str], needs: str) -> str:
    if any(key.startswith(WRAPPERS) for key in unexpected):
        return (
            "The names begin with the prefix of a wrapper: save the unwrapped model again with "
            "save_pretrained"
        )
    if needs == "classifier" and missing:
        return (
            "A judge of kind 'hf' must be a trained classifier; take another model, or use kind "
            "'trained', which trains one from this model"
        )
    return "Save the model again with save_pretrained, or take the config.json that belongs to it"
