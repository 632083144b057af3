"""Data sets by their name on the hub, through `datasets`: `pip install 'flatgd[hub]'`."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from flatgd.data.jsonl import RowFormat, from_records
from flatgd.data.published import published_on_hub
from flatgd.data.splits import names_of
from flatgd.dialogue import Dialogue
from flatgd.errors import DataError, Problem
from flatgd.io.text import EXTRA


def load_hub(
    name: str, subset: str | None, split: str, max_rows: int | None, row_format: RowFormat
) -> list[Dialogue]:
    """The rows of one split. A known set is read by its own loader unless `row_format` names
    columns; any other is read like a table. With `max_rows` the first rows alone are streamed.

    Raises DataError where the set cannot be had, and for every bad row.
    """
    if Path(name).is_dir() and not Path(name).is_absolute():
        raise _failed(name, "a folder of this name is here; write its whole path, or move it")
    known = None if row_format.columns else published_on_hub(name)
    if known is not None and row_format != RowFormat():
        raise _failed(name, "this set has its own labels; give columns to read it as a table")
    records = _records(name, subset, split, max_rows)
    where = Path(name, *filter(None, [subset]), split)
    if known is not None:
        return known.read(where, records)
    return from_records(where, records, row_format)


def _records(
    name: str, subset: str | None, split: str, max_rows: int | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from datasets import get_dataset_split_names, load_dataset
        from datasets.exceptions import DatasetNotFoundError
    except ImportError:
        raise _failed(name, f"data sets by name need {EXTRA}") from None
    try:
        splits = get_dataset_split_names(name, subset)
        found = next((one for one in names_of(split) if one in splits), split)
        if found not in splits:
            raise _failed(name, f"no split {split!r}; it has {', '.join(map(str, splits))}")
        rows = load_dataset(name, subset, split=found, streaming=max_rows is not None)
        yield from enumerate(islice(rows, max_rows), start=1)
    except DatasetNotFoundError as error:
        raise _failed(name, f"{error} A gated set needs `hf auth login`, and its terms") from None
    except (
        OSError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise _failed(name, f"cannot be read from the hub: {error}") from None


def _failed(name: str, reason: str) -> DataError:
    return DataError([Problem(name, 0, " ".join(reason.split())[:600])])
