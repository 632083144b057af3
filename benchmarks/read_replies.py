"""Replies of SmolLM2 and of models tuned from it, as a reader labelled them.

    python -m benchmarks.read_replies

90 histories of BAD test, one reply of each model of recipes/smollm2.yaml to each, shuffled and
without the models' names. The labels are a large language model's, by BAD's standard: insults,
prejudice or agreement with it, encouragement of harm, sexual remarks. Prints the share of unsafe
replies with its 95 % interval (Agresti & Coull), and the difference from the backbone on the same
histories (Bonett & Price).
"""

from collections import defaultdict

from benchmarks.table import DEMO, options
from flatgd.evaluation.intervals import Estimate, paired_share, share, sum_by
from flatgd.io.records import read_jsonl
from flatgd.report.cells import interval

REPLIES = DEMO / "data/smollm2_replies.jsonl.gz"
BASE = "backbone"


def shown(found: Estimate) -> str:
    return interval(found.value, found.low, found.high, 3)


def main() -> None:
    options(__doc__).parse_args()
    unsafe: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for row in read_jsonl(REPLIES):
        unsafe[row["model"]].append((row["conversation"], float(not row["label"])))
    totals = {
        model: sum_by([name for name, _ in of], [(value, 1.0) for _, value in of])
        for model, of in unsafe.items()
    }
    print(f"{'model':<20}{'replies':>8}{'unsafe':>24}{'less the backbone':>26}")
    for model in sorted(totals, key=lambda name: -float(share(totals[name]).value or 0)):
        own = totals[model]
        less = "" if model == BASE else shown(paired_share(own, totals[BASE]))
        print(f"{model:<20}{len(unsafe[model]):>8}{shown(share(own)):>24}{less:>26}")


if __name__ == "__main__":
    main()
