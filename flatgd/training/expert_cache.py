"""An expert's last hidden states at every reply token of the training data, on disk.

Frozen experts say the same of a row in every step, so each row is asked for once. States are 6
(BlenderBot) to 100 (large vocabularies) times smaller than log-probabilities and, through the
expert's head, exact to rounding.

    FOLDER/index.json          key, and of each shard its rows, bytes and checksum; written last
    FOLDER/shard-00000.npy     float32 [tokens of 4,096 rows, D], memory-mapped

The key is a digest of the expert's weights and of the encoded rows, so it changes with tokenizer,
truncation, data and head.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flatgd.io.files import atomic_writer, file_digests, integrity_error, write_atomically
from flatgd.models.encoding import Batch, Example
from flatgd.models.heads import head_weight, reply_states
from flatgd.runtime import distributed
from flatgd.training.fingerprint import digest_of

ROWS_A_SHARD = 4096
INDEX = "index.json"
Collate = Callable[[Sequence[Example]], Batch]


class ExpertStates:
    """Read-only view of a whole cache. `row` of a batch numbers its examples."""

    def __init__(self, folder: Path):
        index = json.loads((folder / INDEX).read_text())
        self._shards = [
            np.load(_shard(folder, n), mmap_mode="r") for n in range(len(index["held"]))
        ]
        self._starts = np.concatenate([[0], np.cumsum(index["tokens"])])

    def of(self, batch: Batch) -> Tensor:
        """States [N, D] of the batch's reply tokens, in the order of `reply_log_probs`."""
        rows = [self._row(row) for row in batch["row"].tolist() if row >= 0]
        states_ND = np.concatenate([self._shards[0][:0], *rows])
        return torch.from_numpy(states_ND).to(batch["row"].device)

    def _row(self, row: int) -> np.ndarray:
        shard, first = row // ROWS_A_SHARD, self._starts[row // ROWS_A_SHARD * ROWS_A_SHARD]
        return self._shards[shard][self._starts[row] - first : self._starts[row + 1] - first]


def cached_states(
    folder: Path,
    expert: nn.Module,
    examples: Sequence[Example],
    collate: Collate,
    *,
    weights: str | None = None,
    rows_at_once: int = 32,
    tell: Callable[[str], None] = print,
) -> ExpertStates:
    """The cache at `folder`, made or made anew where it is missing, stale or torn.

    Several processes share the shards out. `weights` is the digest of the expert's, if it is known.
    """
    key = states_key(weights or digest_of(expert.state_dict().items()), examples)
    fault = fault_of(folder, key)
    distributed.wait()  # before anyone writes, all have looked
    if fault:
        tokens = [len(example.reply_ids) for example in examples]
        size = sum(tokens) * head_weight(expert).shape[1] * 4
        if distributed.is_first():
            tell(f"{folder}: {fault}; writing {size / 2**20:,.1f} MB of expert states")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / INDEX).unlink(missing_ok=True)
        distributed.wait()
        count = -(-len(examples) // ROWS_A_SHARD)
        for number in range(distributed.rank(), count, distributed.count()):
            rows = examples[number * ROWS_A_SHARD : (number + 1) * ROWS_A_SHARD]
            states = _states(expert, rows, collate, rows_at_once)
            with atomic_writer(_shard(folder, number)) as file:
                np.save(file, states)
        distributed.wait()
        if distributed.is_first():
            held = [file_digests(_shard(folder, number)) for number in range(count)]
            write_atomically(
                folder / INDEX, json.dumps({"key": key, "held": held, "tokens": tokens})
            )
        distributed.wait()
    return ExpertStates(folder)


def states_key(weights: str, examples: Sequence[Example]) -> str:
    """Digest of weights, by their own digest, and encoded rows."""
    digest = hashlib.sha256(weights.encode())
    for example in examples:
        digest.update(json.dumps([example.history_ids, example.reply_ids]).encode())
    return digest.hexdigest()


def fault_of(folder: Path, key: str) -> str | None:
    """What is wrong with the cache at `folder`, None if nothing."""
    try:
        index = json.loads((folder / INDEX).read_text())
        key_there, held = index["key"], index["held"]
    except FileNotFoundError:
        return "not there yet"
    except (OSError, ValueError, KeyError, TypeError):
        return "its index cannot be read"
    if key_there != key:
        return "of other weights or rows"
    for number, wanted in enumerate(held):
        path = _shard(folder, number)
        if integrity_error(path, wanted):
            return f"{path.name} is torn"
    return None


def _states(
    expert: nn.Module, rows: Sequence[Example], collate: Collate, at_once: int
) -> np.ndarray:
    """Float32 states of the rows' reply tokens, one after the other; rows run longest together."""
    device = next(expert.parameters()).device
    order = sorted(
        range(len(rows)), key=lambda row: (len(rows[row].history_ids), len(rows[row].reply_ids))
    )
    found: dict[int, np.ndarray] = {}
    for start in range(0, len(order), at_once):
        numbers = order[start : start + at_once]
        batch = {k: v.to(device) for k, v in collate([rows[n] for n in numbers]).items()}
        with torch.no_grad():
            states_ND = reply_states(expert, batch).float().cpu()
        parts = states_ND.split([len(rows[n].reply_ids) for n in numbers])
        found.update(zip(numbers, (part.numpy() for part in parts), strict=True))
    return np.concatenate([found[row] for row in range(len(rows))])


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.npy"
