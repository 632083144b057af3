"""Steps with NaN or infinite numbers, refused with the rows that caused them."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from flatgd.errors import NonFiniteError
from flatgd.flatness import FlatGradient, is_finite
from flatgd.models.encoding import Batch

MAX_ROWS_NAMED = 8  # in a message


def refuse_non_finite_step(
    step: int,
    figures: Mapping[str, float],
    flat: FlatGradient,
    parts: Sequence[tuple[Batch, Mapping[str, Tensor]]],
    names_of: Callable[[Sequence[int]], list[str]],
) -> None:
    """Raise NonFiniteError for a step whose figures or gradient are not finite.

    `parts` are the micro-batches with their own figures; `names_of` names training rows.
    """
    bad = [name for name, value in figures.items() if not math.isfinite(value)]
    if not bad and not is_finite(flat.gradient):
        bad = ["the gradient"]
    if not bad:
        return
    guilty = [part for part, own in parts if not all(f.isfinite() for f in own.values())]
    rows = [row for part in guilty for row in part.get("row", torch.empty(0)).tolist()]
    rows = sorted(row for row in rows if row >= 0)
    hidden = len(rows) - MAX_ROWS_NAMED
    more = f" and {hidden} more" if hidden > 0 else ""
    names = ", ".join(names_of(rows[:MAX_ROWS_NAMED]))
    of = f" on training rows {names}{more}" if rows else ""
    raise NonFiniteError(
        f"step {step}: {', '.join(bad)} is NaN or infinite{of}; "
        "no weight was updated. Lower learning_rate or penalty_share, or look at those rows"
    )
