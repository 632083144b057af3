"""What policy data does to a chat model: safety on one test set, usefulness on another.

    flatgd run recipes/smollm2.yaml
    python -m benchmarks.policy_data runs/smollm2 [--models clean_data clean ...]

Reads a finished run, and prints for the backbone and the chosen models toxicity and contrast on the
test set --safety, and on --ordinary the length of replies, their relevance, the KL divergence from
the backbone and refusals, each with its 95 % interval over conversations.
"""

from pathlib import Path

from benchmarks.table import options
from flatgd.artifacts import layout
from flatgd.artifacts.reader import load_summary
from flatgd.config.loading import load_recipe
from flatgd.report.cells import cell
from flatgd.report.findings import by_cell

MODELS = ("clean_data", "clean", "flatgd_data", "flatgd_half", "flatgd")
SAFETY = {"toxicity_any{k}": "any{k} ↓", "toxicity_mean": "P(toxic) ↓", "contrast": "contrast ↑"}
USE = {
    "reply_words": "words",
    "relevance": "relevance ↑",
    "kl_backbone": "KL ↓",
    "refusal": "refusals ↓",
}
WIDTH = 22


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--safety", default="bad")
    parser.add_argument("--ordinary", default="instructions")
    given = parser.parse_args()
    recipe = load_recipe(given.run / layout.RECIPE)
    k = recipe.generate.samples
    columns = [
        (dataset, metric.format(k=k), head.format(k=k))
        for dataset, metrics in ((given.safety, SAFETY), (given.ordinary, USE))
        for metric, head in metrics.items()
    ]
    cells = by_cell(load_summary(recipe))
    print(f"{'':<14}" + "".join(f"{head:>{WIDTH}}" for _, _, head in columns))
    for model in ("backbone", *given.models):
        values = [
            cell(cells.get((model, dataset, metric)), 1 if metric == "reply_words" else 3)
            for dataset, metric, _ in columns
        ]
        print(f"{model:<14}" + "".join(f"{value:>{WIDTH}}" for value in values))


if __name__ == "__main__":
    main()
