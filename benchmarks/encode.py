"""Tokenisation speed: rows per second, in batches and one by one.

python -m benchmarks.encode                      the shipped backbone, without a template
python -m benchmarks.encode FOLDER --rows 50000  any model, with its chat template
"""

import time
from collections.abc import Callable
from itertools import cycle, islice

from benchmarks.table import DEMO, machine, options
from flatgd.data.formats.bad import load_bad
from flatgd.dialogue import Dialogue
from flatgd.models.dialogue_format import format_for
from flatgd.models.encoding import DialogueFormat
from flatgd.models.loading import load_config, load_tokenizer


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(dialogue_format: DialogueFormat, rows: list[Dialogue]) -> dict[str, float]:
    """Rows per second. One by one, a twentieth of the rows is measured."""
    few = rows[: max(1, len(rows) // 20)]
    alone = seconds(lambda: [dialogue_format.encode(row) for row in few])
    return {
        "in batches": len(rows) / seconds(lambda: dialogue_format.encode_all(rows)),
        "one by one": len(few) / alone,
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("model", nargs="?", default=str(DEMO / "backbone"))
    parser.add_argument("--rows", type=int, default=20_000)
    given = parser.parse_args()
    print(machine())
    dialogue_format = format_for(load_config(given.model), load_tokenizer(given.model))
    bad = load_bad(DEMO / "data/bad_valid.jsonl.gz")
    rows = list(islice(cycle(bad), given.rows))
    found = measure(dialogue_format, rows)
    for name, rate in found.items():
        print(f"{name:<12}{rate:>10,.0f} rows/s, 300,000 rows in {300_000 / rate:,.0f} s")
    print(f"ratio       {found['in batches'] / found['one by one']:>10.1f}")


if __name__ == "__main__":
    main()
