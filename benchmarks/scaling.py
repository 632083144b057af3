"""Checks that the time of a run grows linearly with its data.

    python -m benchmarks.scaling [--rows 64]

Runs `flatgd run` with 1, 4 and 16 times as many rows to train on and histories to answer, on the
shipped backbone and real dialogue. The cost per additional row between 4 and 16 times must not
exceed the cost between 1 and 4 times. Exits with 1 if the target is missed.
"""

import json
import sys
import tempfile
import time
from io import StringIO
from pathlib import Path

from rich.console import Console

from benchmarks.table import DEMO, Target, conclude, machine, options
from flatgd.config.loading import load_recipe
from flatgd.data.formats.diasafety import load_diasafety
from flatgd.run import run
from flatgd.runtime.display import Display

RECIPE = """
name: scaling
output: run
backbone: demo:backbone
scorer: demo:scorer
data:
  policy: [{name: rows, format: jsonl, path: policy.jsonl}]
  judge: [{name: rows, format: jsonl, path: judge.jsonl}]
  test: [{name: rows, format: jsonl, path: test.jsonl}]
max_history_tokens: 64
max_reply_tokens: 32
train: {num_train_epochs: 1, per_device_train_batch_size: 16, learning_rate: 1e-4}
methods: {clean: {}, flatgd: {}}
generate: {samples: 2, max_new_tokens: 16, min_new_tokens: 16}
report: {resamples: 100}
"""


def seconds(rows: int, times: int) -> float:
    """The time of a run on `times` as many rows."""
    found = load_diasafety(DEMO / "data/diasafety", "train")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "recipe.yaml").write_text(RECIPE)
        size = rows * times
        for number, part in enumerate(("policy", "judge", "test")):
            lines = [
                {
                    "prompt": list(row.history),
                    "completion": row.reply,
                    "label": row.is_safe,
                    "conversation": f"{part}{row.conversation}",
                }
                for row in found[number * size : (number + 1) * size]
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{part}.jsonl").write_text(text)
        recipe = load_recipe(folder / "recipe.yaml", [f"generate.histories={size // 4}"])
        begun = time.perf_counter()
        run(recipe, Display(Console(file=StringIO())))
        return time.perf_counter() - begun


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=64, help="rows at 1x")
    rows = parser.parse_args().rows
    print(machine())
    seconds(16, 1)  # imports and first calls
    taken = {times: seconds(rows, times) for times in (1, 4, 16)}
    for times, value in taken.items():
        print(f"{times:>3} x {rows} rows {value:8.1f} s")
    early, late = (taken[4] - taken[1]) / 3, (taken[16] - taken[4]) / 12
    return conclude([Target("cost of a row, 4-16x / 1-4x", late / early, 1.15)])


if __name__ == "__main__":
    sys.exit(main())
