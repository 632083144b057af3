"""Encoded rows of a run: each row encoded once, its ids in one array.

The trainings of a run read the same rows, so they share a RowEncoder. 300,000 rows of 130 tokens
take 170 MB here, and 1.5 GB as lists of Python's integers.
"""

import hashlib
import json
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import TypeVar, overload

import numpy as np

from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, FlatGDError
from flatgd.models.encoding import DialogueFormat, Example

T = TypeVar("T")
WAYS_KEPT = 2  # a run has one way of encoding, and experts with a backbone of their own another
DIGEST_BYTES = 16


class RowEncoder:
    """Encodes rows, and keeps them for the next training that reads them in the same way.

    `ahead` are rows that trainings will ask for, each for some of them. They are encoded together
    as soon as one of them is asked for, because rows with one prompt are encoded faster together.
    """

    def __init__(self, ahead: Sequence[Dialogue] = ()) -> None:
        self._ahead = ahead
        self._kept: dict[str, tuple[dict[Dialogue, int], _Store]] = {}

    def encode(
        self, dialogue_format: DialogueFormat, rows: Sequence[Dialogue], first: int | None = 0
    ) -> "EncodedRows":
        """`dialogue_format.encode_all(rows)`, with row numbers from `first` on; None: all are -1.

        Raises what that raises.
        """
        places, store = self._rows_of(dialogue_format)
        found = list(map(places.get, rows))
        if None in found:
            missing = {row for row, place in zip(rows, found, strict=True) if place is None}
            if missing.issubset(self._ahead):
                with suppress(FlatGDError):  # of a row that nobody may ask for
                    store.add(places, self._ahead, dialogue_format)
            try:
                store.add(places, rows, dialogue_format)
            except DataError:
                dialogue_format.encode_all(rows)  # raises it with equal rows too
                raise
            found = [places[row] for row in rows]
        return EncodedRows(store, np.array(found, np.int64), first)

    def _rows_of(self, dialogue_format: DialogueFormat) -> tuple[dict[Dialogue, int], "_Store"]:
        """The place of each row encoded so far, and the store that holds it."""
        way = dialogue_format.identity()
        if way is None:
            return {}, _Store()
        self._kept[way] = self._kept.pop(way, ({}, _Store()))  # the newest comes last
        if len(self._kept) > WAYS_KEPT:
            del self._kept[next(iter(self._kept))]
        return self._kept[way]


class _Store:
    """Examples without their row numbers. They are added and never changed."""

    def __init__(self) -> None:
        self.ids = array("i")  # of each row its history, then its reply
        self.starts = array("q", [0])
        self.history_lengths = array("i")
        self.is_safe = array("b")
        self.cut_tokens = array("i")
        self.notes: dict[int, tuple[str, ...]] = {}  # of the rows that have any
        self.digests = bytearray()

    def add(
        self, places: dict[Dialogue, int], rows: Iterable[Dialogue], dialogue_format: DialogueFormat
    ) -> None:
        """Encode the rows that are not in `places`, and record their places there."""
        missing = list(dict.fromkeys(row for row in rows if row not in places))
        for row, example in zip(missing, dialogue_format.encode_each(missing), strict=True):
            places[row] = len(self.history_lengths)
            self._append(*example)

    def _append(
        self,
        history: list[int],
        reply: list[int],
        is_safe: bool,
        cut: int,
        row: int,
        notes: tuple[str, ...],
    ) -> None:
        if notes:
            self.notes[len(self.history_lengths)] = notes
        ids = array("i", history)
        ids.fromlist(reply)
        self.ids += ids
        self.starts.append(len(self.ids))
        self.history_lengths.append(len(history))
        self.is_safe.append(is_safe)
        self.cut_tokens.append(cut)
        self.digests += _digest(ids, len(history))

    def example(self, place: int, row: int) -> Example:
        ids = self.ids[self.starts[place] : self.starts[place + 1]].tolist()
        length, is_safe = self.history_lengths[place], bool(self.is_safe[place])
        cut, notes = self.cut_tokens[place], self.notes.get(place, ())
        return Example(ids[:length], ids[length:], is_safe, cut, row, notes)


class _MadeOnDemand(Sequence[T]):
    """A sequence whose items are made when they are asked for."""

    def at(self, number: int) -> T:
        """The item at a number from 0 on."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        numbers = range(len(self))[index]
        return self.at(numbers) if isinstance(numbers, int) else list(map(self.at, numbers))


class EncodedRows(_MadeOnDemand[Example]):
    """The Examples of some rows of a store."""

    def __init__(self, store: _Store, places: np.ndarray, first: int | None):
        self._store, self._places, self._first = store, places, first

    def __len__(self) -> int:
        return len(self._places)

    def at(self, number: int) -> Example:
        row = -1 if self._first is None else self._first + number
        return self._store.example(int(self._places[number]), row)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of tokens of each history and of each reply."""
        whole = np.diff(np.array(self._store.starts))[self._places]
        history = self._of(self._store.history_lengths)
        return history, whole - history

    def cut(self) -> int:
        """How many rows lost tokens of history or reply."""
        return int(np.count_nonzero(self._of(self._store.cut_tokens)))

    def notes(self) -> dict[str, int]:
        """The number of rows that each rule of the dialogue format changed."""
        return dict(Counter(note for _, notes in self._noted() for note in notes))

    def id_digests(self) -> bytes:
        """A digest of each row's ids."""
        digests = np.frombuffer(bytes(self._store.digests), np.uint8).reshape(-1, DIGEST_BYTES)
        return digests[self._places].tobytes()

    def digest(self) -> bytes:
        """A digest of all Examples with everything they hold."""
        about = [self._of(self._store.is_safe), self._of(self._store.cut_tokens)]
        digest = hashlib.sha256(json.dumps([len(self), self._first, self._noted()]).encode())
        for part in (self.id_digests(), *(values.tobytes() for values in about)):
            digest.update(part)
        return digest.digest()

    def _of(self, values: array) -> np.ndarray:
        return np.array(values)[self._places]

    def _noted(self) -> list[tuple[int, tuple[str, ...]]]:
        """(number in this sequence, notes) of the rows that have any."""
        noted = self._store.notes
        if not noted:
            return []
        numbered = enumerate(self._places.tolist())
        return [(number, noted[place]) for number, place in numbered if place in noted]


class JoinedRows(_MadeOnDemand[Example]):
    """Several sequences one after another, with the row numbers that they have."""

    def __init__(self, parts: Iterable[EncodedRows]):
        self.parts = list(parts)
        self._ends = list(accumulate(map(len, self.parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def at(self, number: int) -> Example:
        part = bisect_right(self._ends, number)
        return self.parts[part][number - self._ends[part]]  # counted from the part's end


class EncodedGroups(_MadeOnDemand[tuple[Example, ...]]):
    """Encoded rows in groups that stay together in a batch: single rows, or pairs."""

    def __init__(self, rows: EncodedRows, sizes: Iterable[int]):
        self.rows, self._starts = rows, array("q", accumulate(sizes, initial=0))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def at(self, number: int) -> tuple[Example, ...]:
        return tuple(self.rows[self._starts[number] : self._starts[number + 1]])

    def have_pairs(self) -> bool:
        return len(self.rows) > len(self)


def id_digests(examples: Sequence[Example]) -> bytes:
    """A digest of each example's ids."""
    if isinstance(examples, EncodedRows):
        return examples.id_digests()
    if isinstance(examples, JoinedRows):
        return b"".join(map(id_digests, examples.parts))
    whole = ((array("i", e.history_ids + e.reply_ids), len(e.history_ids)) for e in examples)
    return b"".join(_digest(ids, length) for ids, length in whole)


def _digest(ids: array, history_length: int) -> bytes:
    data = history_length.to_bytes(8, "little") + ids.tobytes()
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
