"""Rows of a file of any kind: JSON lines, a JSON array, CSV, TSV or Parquet, compressed or not."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flatgd.errors import DataError, Problem
from flatgd.io.records import parse_json
from flatgd.io.tables import parse_table
from flatgd.io.text import EXTRA, unpacked_name

SEPARATORS = {".csv": ",", ".tsv": "\t"}
PARQUET = (".parquet", ".pq")
Records = Iterable[tuple[int, Any]]  # (line or row number, row or ValueError)


def suffix_of(path: Path) -> str:
    """The suffix that decides how a file is read, without that of its compression.

    >>> suffix_of(Path("replies.CSV.gz"))
    '.csv'
    """
    return Path(unpacked_name(path.name)).suffix.lower()


def parse_any(path: Path) -> Records:
    """(line number, row) of a file. Rows of a Parquet file count from 1.

    Raises DataError where the file cannot be read.
    """
    suffix = suffix_of(path)
    if suffix in PARQUET:
        return _parse_parquet(path)
    return parse_table(path, SEPARATORS[suffix]) if suffix in SEPARATORS else parse_json(path)


def _parse_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        reason = f"Parquet files need {EXTRA}"
        raise DataError([Problem(str(path), 0, reason)]) from None
    try:
        with ParquetFile(path) as file:
            is_empty = not file.metadata.num_rows
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from enumerate(rows, start=1)
    except FileNotFoundError:
        raise DataError([Problem(str(path), 0, "no such file")]) from None
    except (ArrowException, OSError) as error:
        raise DataError([Problem(str(path), 0, f"cannot be read: {error}")]) from None
    if is_empty:
        raise DataError([Problem(str(path), 0, "the file has no rows")])
