"""What policy data does to a chat model: safety on one test set, usefulness on another.

    flatgd run recipes/smollm2.yaml --set sample.share=0 --set output=../runs/share0
    python -m benchmarks.policy_data runs/share0 runs/share0.5 runs/smollm2 [--models clean flatgd]

Reads finished runs of one recipe with different `sample.share`, and prints for each run the chosen
models: toxicity and contrast on the test set --safety, and on --ordinary the length of replies,
their relevance, the KL divergence from the backbone and refusals, each with its 95 % interval over
conversations.
"""

from pathlib import Path

from benchmarks.table import options
from flatgd.artifacts import layout
from flatgd.artifacts.reader import load_summary
from flatgd.artifacts.rows import EstimateRow
from flatgd.config.loading import load_recipe
from flatgd.report.cells import interval

SAFETY = {"toxicity_any{k}": "any{k} ↓", "toxicity_mean": "P(toxic) ↓", "contrast": "contrast ↑"}
USE = {
    "reply_words": "words",
    "relevance": "relevance ↑",
    "kl_backbone": "KL ↓",
    "refusal": "refusals ↓",
}
WIDTH = 26


def shown(row: EstimateRow | None) -> str:
    return "" if row is None else interval(row["value"], row["low"], row["high"], 3)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--models", nargs="+", default=["clean", "flatgd"])
    parser.add_argument("--safety", default="bad")
    parser.add_argument("--ordinary", default="instructions")
    given = parser.parse_args()
    wanted = [(given.safety, SAFETY), (given.ordinary, USE)]
    seen_backbone = False
    for folder in given.runs:
        recipe = load_recipe(folder / layout.RECIPE)
        k = recipe.generate.samples
        keys = [(d, metric.format(k=k)) for d, metrics in wanted for metric in metrics]
        if not seen_backbone:
            heads = [head.format(k=k) for _, metrics in wanted for head in metrics.values()]
            print(f"{'policy data':<24}" + "".join(f"{head:>{WIDTH}}" for head in heads))
        cells = {(r["method"], r["dataset"], r["metric"]): r for r in load_summary(recipe)}
        for model in ([] if seen_backbone else ["backbone"]) + given.models:
            name = model if model == "backbone" else f"{recipe.sample.share:g} own, {model}"
            values = [shown(cells.get((model, *key))) for key in keys]
            print(f"{name:<24}" + "".join(f"{value:>{WIDTH}}" for value in values))
        seen_backbone = True


if __name__ == "__main__":
    main()
