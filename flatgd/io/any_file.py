"""Rows of a file of any kind: JSON lines, a JSON array, CSV, TSV or Parquet, compressed or not."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from flatgd.errors import DataError, Problem
from flatgd.io.records import parse_json
from flatgd.io.tables import parse_table
from flatgd.io.text import EXTRA, GIB, limit_gib, too_large, unpacked_name

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
        raise _failed(path, f"Parquet files need {EXTRA}") from None
    limit, size = limit_gib() * GIB, 0
    try:
        with ParquetFile(path) as file:
            if twice := repeated(file.schema_arrow.names):
                raise _failed(path, f"two columns are called {twice!r}; rename or remove one")
            if not file.metadata.num_rows:
                raise _failed(path, "the file has no rows")
            number = 0
            for batch in file.iter_batches():
                size += batch.nbytes
                if size > limit:
                    raise _failed(path, too_large(limit / GIB, "holds more than"))
                rows = batch.to_pylist()
                yield from enumerate(rows, start=number + 1)
                number += len(rows)
    except FileNotFoundError:
        raise _failed(path, "no such file") from None
    except (ArrowException, OSError, ValueError, OverflowError) as error:
        raise _failed(path, f"cannot be read: {error}") from None


def repeated(names: Sequence[object]) -> object | None:
    """A name that occurs twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _failed(path: Path, reason: str) -> DataError:
    return DataError([Problem(str(path), 0, reason)])
