"""A disk cache of an expert's last hidden states at every reply token of the training data.

A frozen expert gives the same states for a row in every step, so each row is computed once. States
are 6 (BlenderBot) to 100 (large vocabularies) times smaller than log-probabilities, which the
expert's head gives back up to rounding.

    FOLDER/index.json          format number, fingerprint, and the tokens, bytes and checksum of
                               each shard; written last
    FOLDER/shard-00000.npy     float32 [tokens of 4,096 rows, D], memory-mapped

The fingerprint is a digest of the expert's weights and of the encoded rows, so it changes with
tokenizer, truncation, data and head.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flatgd.io.files import atomic_writer, file_digests, integrity_error, write_atomically
from flatgd.models.encoded_rows import id_digests
from flatgd.models.encoding import Batch, Example
from flatgd.models.heads import head_weight, reply_states
from flatgd.runtime import distributed
from flatgd.training.resume_fingerprint import digest_of

ROWS_A_SHARD = 4096
INDEX = "index.json"
FORMAT = 1  # of the index; a cache with another number is rebuilt
Collate = Callable[[Sequence[Example]], Batch]


class ExpertStates:
    """Read-only view of a complete cache. A batch's `row` [B] numbers its examples."""

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
    """The cache at `folder`, built if it is missing and rebuilt if it is stale or corrupted.

    Several processes divide the shards among them. `weights` is the digest of the expert's weights,
    if the caller knows it.
    """
    fingerprint = states_fingerprint(weights or digest_of(expert.state_dict().items()), examples)
    tokens = [len(example.reply_ids) for example in examples]
    fault = fault_of(folder, fingerprint, tokens)
    distributed.wait()  # every process has checked the cache before one of them writes
    if fault:
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
            index = {"format": FORMAT, "fingerprint": fingerprint, "held": held, "tokens": tokens}
            write_atomically(folder / INDEX, json.dumps(index))
        distributed.wait()
    return ExpertStates(folder)


def states_fingerprint(weights: str, examples: Sequence[Example]) -> str:
    """SHA-256 of the weights' own digest and the encoded rows."""
    return hashlib.sha256(weights.encode() + id_digests(examples)).hexdigest()


def fault_of(folder: Path, fingerprint: str, tokens: Sequence[int]) -> str | None:
    """Why the cache at `folder` must be built; None if it is intact. `tokens` are those of each
    reply."""
    try:
        index = json.loads((folder / INDEX).read_text())
        written, found, held = index.get("format"), index.get("fingerprint"), index.get("held")
    except FileNotFoundError:
        return "no cache yet"
    except (OSError, ValueError, AttributeError):
        return "its index is unreadable"
    if written != FORMAT:
        return f"its index has format {written}, and this version of flatgd reads format {FORMAT}"
    if found != fingerprint or not isinstance(held, list):
        return "weights or rows changed"
    if index.get("tokens") != tokens:
        return "its index is corrupted"
    for number, wanted in enumerate(held):
        path = _shard(folder, number)
        if integrity_error(path, wanted):
            return f"{path.name} is corrupted"
    return None


def _states(
    expert: nn.Module, rows: Sequence[Example], collate: Collate, at_once: int
) -> np.ndarray:
    """Float32 states [N, D] of the rows' reply tokens, in row order. Rows of similar length are
    computed together."""
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
