"""What the figures say, in sentences; also where they say nothing."""

from collections.abc import Sequence
from typing import Any

from flatgd.config.recipe import Recipe
from flatgd.evaluation.summary import FLATNESS

Row = dict[str, Any]
Cells = dict[tuple[str, str, str], Row]
LOWER_IS_BETTER = {"perplexity": True, "nll_ordinary": True, "div1": False, "div2": False}
LOWER_IS_BETTER |= {"relevance": False}


def findings(summary: Sequence[Row], recipe: Recipe, judges: Sequence[Row]) -> list[str]:
    """Do the experts differ, is each method safer than clean and as good, what can judges see."""
    samples, baseline = recipe.generate.samples, recipe.baseline
    cells = {(row["method"], row["dataset"], row["metric"]): row for row in summary}
    datasets = list(dict.fromkeys(row["dataset"] for row in summary))
    told = [_experts(cells, dataset) for dataset in datasets]
    pairs = [(method, baseline) for method in recipe.methods if method != baseline]
    for method, base in [*pairs, FLATNESS]:
        for metric in ("contrast", f"toxicity_any{samples}", "toxicity_mean"):
            told.append(_difference(cells, method, datasets, metric, base))
    for method, base in pairs:
        told.append(_kept(cells, method, base, datasets, recipe.report.non_inferiority))
    told += _judge(recipe, judges[0])
    return [sentence for sentence in told if sentence]


def _experts(cells: Cells, dataset: str) -> str:
    """Whether the toxic expert likes toxic replies more than the clean one does."""
    row = cells.get(("toxic_expert - clean_expert", dataset, "contrast"))
    if row is None or row["low"] is None:
        return ""
    if row["high"] < 0:
        return f"{dataset}: the experts differ, toxic less clean in contrast {_interval(row)}."
    return (
        f"{dataset}: no contrast between the experts, toxic less clean {_interval(row)}: nothing "
        "to steer by; train them longer or on more labelled replies."
    )


def _difference(cells: Cells, method: str, datasets: Sequence[str], metric: str, base: str) -> str:
    """The paired difference on each test set; an interval that holds 0, or a p above .05 after
    Holm's correction, decides nothing."""
    rows = [(dataset, cells.get((f"{method} - {base}", dataset, metric))) for dataset in datasets]
    parts = [
        f"{dataset} {_interval(row)}{'' if _is_decided(row) else ' (undecided)'}"
        for dataset, row in rows
        if row is not None and row["low"] is not None
    ]
    return f"{method} less {base}, {metric}: {', '.join(parts)}." if parts else ""


def _is_decided(row: Row) -> bool:
    is_clear = row["low"] > 0 or row["high"] < 0
    return bool(is_clear and row["p_holm"] is not None and row["p_holm"] < 0.05)


def _kept(cells: Cells, method: str, base: str, datasets: Sequence[str], margin: float) -> str:
    """Non-inferiority in quality: at worst a loss of `margin` of the yardstick's value."""
    verdicts: dict[str, list[str]] = {"kept": [], "lost": [], "undecided": []}
    for metric, is_lower_better in LOWER_IS_BETTER.items():
        found: dict[str, list[str]] = {}
        for dataset in datasets:
            row = cells.get((f"{method} - {base}", dataset, metric))
            own = cells.get((base, dataset, metric))
            if row is None or own is None or row["low"] is None or own["value"] is None:
                continue
            verdict = non_inferior(row, margin * abs(own["value"]), is_lower_better)
            found.setdefault(verdict, []).append(dataset)
        for verdict, where in found.items():
            told = metric if len(found) == 1 else f"{metric} on {', '.join(where)}"
            verdicts[verdict].append(told)
    parts = [f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items() if names]
    return f"{method}, quality of {base} within {margin:.0%}: {'; '.join(parts)}." if parts else ""


def non_inferior(difference: Row, margin: float, is_lower_better: bool) -> str:
    """kept: the interval lies above a loss of `margin`; lost: below it; else undecided.

    >>> non_inferior({"low": -0.02, "high": 0.05}, 0.03, is_lower_better=False)
    'kept'
    """
    low, high = difference["low"], difference["high"]
    worst, best = (-high, -low) if is_lower_better else (low, high)
    if worst > -margin:
        return "kept"
    return "lost" if best < -margin else "undecided"


def _judge(recipe: Recipe, judge: Row) -> list[str]:
    """The judge's floor, and how much of a difference it shows."""
    rate, samples = judge["false_positive_rate"], recipe.generate.samples
    subject = "The judge" if len(recipe.judges) == 1 else f"The judge {judge['name']}"
    floor = 1 - (1 - rate) ** samples
    told = [
        f"{subject} is set to mark {rate:.1%} of human-labelled safe replies: on replies like "
        f"those a faultless model has up to {floor:.3f} on any of {samples}."
    ]
    own = [p for p in judge["quality"] if p["rows_of"].endswith("bot replies, no canned ones")]
    part = next(iter([*own, *judge["quality"]]), None)
    if part and part["auc"] is not None:
        safe, toxic = part["false_positive_rate"][0], part["true_positive_rate"][0]
        told.append(
            f"It tells toxic from safe with AUC {part['auc'][0]:.2f} ({part['rows_of']}) and "
            f"marks {toxic:.1%} of the toxic ones, {safe:.1%} of the safe: a difference in the "
            f"true share of toxic replies shows at {max(0.0, toxic - safe):.0%} of its size."
        )
    if judge.get("is_flat"):
        told.append(
            f"{subject} does not tell toxic from safe on the replies it was calibrated on: its "
            "P(toxic) is nearly the same for every reply, and figures by it say nothing."
        )
    if (cut := judge.get("cut")) and (cut["histories"] or cut["replies"]):
        told.append(
            f"{subject} reads no more than fits: of {cut['inputs']:,} labelled replies "
            f"{cut['histories']:,} lost older history, {cut['replies']:,} the reply's beginning."
        )
    if judge["few_labels"]:
        told.append(
            f"{subject} rests on few labels, {judge['safe']} safe and {judge['toxic']} toxic ones: "
            "its figures may be chance; label more, or name a ready classifier (kind: hf)."
        )
    return told


def _interval(row: Row) -> str:
    return f"{row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
