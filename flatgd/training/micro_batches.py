"""Parts of a collated batch: micro-batches, selected rows, and rows that are emptied.

B rows, T reply positions, as in flatgd/models/encoding.py.
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from flatgd.models.encoding import IGNORE, Batch


def split_batch(batch: Batch, size: int | None, by_label: bool = False) -> list[Batch]:
    """A collated batch as micro-batches of at most `size` rows, each as wide as its longest row.

    Rows are first sorted by label and length. This saves padding, and a micro-batch with toxic rows
    alone has no likelihood term to differentiate. With `by_label` no micro-batch mixes labels.
    Every mean is over the whole batch, so the order does not matter. Rows with one number in `pair`
    [B] (-1: no pair) stay together, toxic before safe.
    """
    lengths = batch["attention_mask"].sum(1)
    rank = batch["is_safe"].long() * (int(lengths.max()) + 1) + lengths
    size = size or len(rank)
    if "pair" not in batch:
        rows = torch.argsort(rank, stable=True)
        toxic = int((~batch["is_safe"]).sum())
        groups = [rows[:toxic], rows[toxic:]] if by_label else [rows]
        return [take_rows(batch, part) for group in groups for part in _even_parts(group, size)]
    pair = batch["pair"]
    singles, paired = (pair < 0).nonzero()[:, 0], (pair >= 0).nonzero()[:, 0]
    singles = singles[torch.argsort(rank[singles], stable=True)]
    paired = paired[torch.argsort(2 * pair[paired] + batch["is_safe"][paired])]  # toxic, safe
    parts = [*singles.split(size), *paired.split(max(2, size // 2 * 2))]
    return [take_rows(batch, rows) for rows in parts if len(rows)]


def _even_parts(rows: Tensor, size: int) -> list[Tensor]:
    """The fewest parts of at most `size` rows; their lengths differ by at most one."""
    return list(rows.tensor_split(-(-len(rows) // size))) if len(rows) else []


def emptied(batch: Batch, rows: Tensor) -> Batch:
    """The batch without reply tokens in `rows` (a mask [B]), so no sum includes those rows."""
    nothing = {"targets": IGNORE, "is_safe": True, "row": -1, "pair": -1}
    changed = {key: batch[key].clone() for key in nothing if key in batch}
    for key, value in changed.items():
        value[rows] = nothing[key]
    return {**batch, **changed}


def take_rows(batch: Batch, rows: Tensor) -> Batch:
    """Some rows of a collated batch. A batch of flatgd's own is narrowed to the longest of them."""
    part = {key: value[rows] for key, value in batch.items()}
    if "labels" in part:
        return part
    width = int(part["attention_mask"].sum(1).max())
    reply_widths = [1, *((part["targets"] != IGNORE).any(0).nonzero()[:, 0] + 1).tolist()]
    reply_width = reply_widths[-1] if "decoder_input_ids" in part else width
    for key in ("input_ids", "attention_mask"):
        part[key] = part[key][:, :width]
    for key in ("targets", "decoder_input_ids"):
        if key in part:
            part[key] = part[key][:, :reply_width]
    return part


def without_repeats(batch: Batch, of: int, accelerator: Accelerator) -> Batch:
    """This process's share of an epoch's last batch, where the data set has `of` items.

    With several processes, accelerate fills that batch up with rows from the start of the epoch, so
    that each process gets the same number of rows. Those repeats are emptied here.
    """
    processes = accelerator.num_processes
    if processes == 1 or not accelerator.gradient_state.end_of_dataloader:
        return batch
    pair = batch.get("pair", torch.full_like(batch["is_safe"], -1, dtype=torch.long))
    is_first = torch.ones_like(batch["is_safe"])  # of its item: a row alone, or a pair
    is_first[1:] = (pair[1:] < 0) | (pair[1:] != pair[:-1])
    item = is_first.cumsum(0) - 1
    items = int(item[-1]) + 1
    rest = of % (processes * items)
    return emptied(batch, item >= rest - accelerator.process_index * items) if rest else batch
