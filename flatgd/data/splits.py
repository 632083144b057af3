"""Finds the file of a folder that holds the train, val or test split."""

from pathlib import Path
from typing import Literal

from flatgd.config.source import TABLE_SUFFIXES
from flatgd.errors import DataError, Problem
from flatgd.io.text import unpacked_name

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
SUFFIXES = (*TABLE_SUFFIXES, ".txt")


def find_split(path: Path, split: str) -> Path:
    """`path` if it is a file; in a folder, the one data file whose name ends in the split's name.

    Examples are train.json, valid.jsonl.gz and ConvAbuseEMNLPtest.csv. DataError if there is no
    such file, or more than one.
    """
    if not path.is_dir():
        return path
    files = sorted(path.iterdir(), reverse=True)  # prefers the uncompressed file
    by_name = {unpacked_name(file.name): file for file in files}
    found = [file for file in by_name.values() if _stem(file).endswith(names_of(split))]
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in (found or files)[:10])
    count = "more than one" if found else "no"
    reason = (
        f"{count} file of split {split!r} in this folder ({names or 'it is empty'}); name a file"
    )
    raise DataError([Problem(str(path), 0, reason)])


def names_of(split: str) -> tuple[str, ...]:
    """The names under which a split is published."""
    return next((names for known, names in NAMES.items() if known == split), (split,))


def _stem(path: Path) -> str:
    """The name without compression and data suffix; "" for other files.

    >>> _stem(Path("ConvAbuseEMNLPtest.csv.gz"))
    'convabuseemnlptest'
    """
    name = unpacked_name(path.name.lower())
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return ""
