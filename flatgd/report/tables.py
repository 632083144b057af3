"""The report's tables of models and judges; the main ones also in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from flatgd.artifacts.reader import load_judges, load_summary
from flatgd.artifacts.rows import EstimateRow, JudgeReport, Quality
from flatgd.config.names import REFERENCE
from flatgd.config.recipe import Recipe
from flatgd.evaluation.agreement import Agreement
from flatgd.report.cells import Table, cell, interval, number, worded
from flatgd.report.findings import findings
from flatgd.report.metrics import MAIN, MORE, Metric, used
from flatgd.report.sentences import sentence

Cells = Mapping[tuple[str, str], EstimateRow]


NOTE = (
    "Values with 95% intervals over conversations{seeds}. Contrast: NLL per token of labelled "
    "toxic replies minus that of safe ones, under the model itself; paired: within contexts that "
    "have both. Toxicity is by the judge whose quality is given below. Perplexity and relevance "
    "(NLL given another history minus NLL given its own) are under the independent scorer. KL is "
    "that of the next token over the backbone's replies to ordinary dialogue, in nats. Reference: "
    "the replies of the test set itself. Longer replies look more toxic: compare at equal length."
)
ALL = (
    "Values with 95% intervals over conversations. A row with a minus sign is a paired "
    "difference; * marks p < .05 after Holm's correction over all methods and test sets for that "
    "metric and base."
)
DIFFERENCES = (
    "Paired over conversations. *: p < .05 after Holm's correction over all methods and test sets "
    "for that metric and base."
)


def main_tables(
    summary: Sequence[EstimateRow], names: Sequence[str], samples: int, seeds: int = 1
) -> list[Table]:
    """For each test set: the models, the paired differences, and further metrics of the replies."""
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        cells = {
            (row["method"], row["metric"]): row for row in summary if row["dataset"] == dataset
        }
        methods = [*names, REFERENCE]
        differences = [m for m in dict.fromkeys(m for m, _ in cells) if " - " in m]
        for title, shown, metrics, note in (
            (f"Test set {dataset}", methods, MAIN, ""),
            (f"Test set {dataset}: paired differences", differences, MAIN, DIFFERENCES),
            (f"Test set {dataset}: replies and behaviour", methods, MORE, ""),
        ):
            table = _table(title, cells, shown, used(cells, shown, metrics, samples), note)
            if table.rows and len(table.header) > (2 if metrics is MORE else 1):
                tables.append(table)
    note = NOTE.format(seeds=f" and {seeds} seeds" if seeds > 1 else "")
    return [tables[0]._replace(note=note), *tables[1:]]


def all_numbers(summary: Sequence[EstimateRow], names: Sequence[str], samples: int) -> Table:
    """One row for each model and paired difference on each test set, one column a metric."""
    methods = [*names, REFERENCE]
    methods += [m for m in dict.fromkeys(row["method"] for row in summary) if " - " in m]
    everywhere = {(row["method"], row["metric"]): row for row in summary}
    metrics = used(everywhere, methods, [*MAIN, *MORE], samples)
    cells = {(row["dataset"], row["method"], row["metric"]): row for row in summary}
    rows = []
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        for method in methods:
            values = [
                _known(cells.get((dataset, method, metric.name)), metric) for metric in metrics
            ]
            if any(values):
                rows.append([method.replace(" - ", " − "), dataset, *values])
    return Table(
        "Every metric of every model", ["model", "test set", *(m.head for m in metrics)], rows, ALL
    )


def _known(row: EstimateRow | None, metric: Metric) -> str:
    """A cell; empty where human replies have no such metric."""
    is_missing = row is not None and row["method"] == REFERENCE and row["value"] is None
    return "" if is_missing else cell(row, metric.decimals)


def _table(
    title: str, cells: Cells, methods: Sequence[str], metrics: Sequence[Metric], note: str
) -> Table:
    rows = [
        [method, *(_known(cells.get((method, metric.name)), metric) for metric in metrics)]
        for method in methods
        if any((method, metric.name) in cells for metric in metrics)
    ]
    return Table(title, ["model", *(metric.head for metric in metrics)], rows, note)


def judge_table(judge: JudgeReport) -> Table:
    """The judge's agreement with annotators' labels that it was not trained on."""
    rate = f"{judge['false_positive_rate']:.3g}"
    header = [
        *("human labels of", "AUC", "F1", "safe flagged", "toxic flagged", f"found at {rate}"),
        *("calibration error", "Brier", "replies", "toxic"),
    ]
    rows = [
        [
            part["rows_of"],
            *_rates(part),
            number(part["calibration_error"], 3),
            number(part["brier"], 3),
            f"{part['rows']:,}",
            f"{part['toxic']:,}",
        ]
        for part in judge["quality"]
    ]
    note = (
        f"{judge['about']} from other conversations; calibrated on {judge['safe']:,} safe and "
        f"{judge['toxic']:,} toxic ones. F1 at P > {judge['f1_threshold']:.3f}, where it was "
        f"highest in calibration. Flagged: the share above the threshold {judge['threshold']:.3f}. "
        f"Found: the share of toxic replies above the threshold that exactly {rate} of these safe "
        "replies pass."
    )
    return Table(f"The judge {judge['name']}", header, rows, note)


def _rates(part: Quality) -> list[str]:
    """AUC, F1 and the rates of some rows, with intervals."""
    triples = [
        *(part["auc"], part["f1"], part["false_positive_rate"], part["true_positive_rate"]),
        part["found"],
    ]
    return ["undefined" if t is None else interval(t[0], t[1], t[2], 3) for t in triples]


def agreement_table(rows: Sequence[Agreement]) -> Table:
    shown = [
        [
            f"{row.one}, {row.other}",
            number(row.spearman, 3),
            number(row.kappa, 3),
            number(row.both, 3),
            f"{row.replies:,}",
        ]
        for row in rows
    ]
    return Table(
        "How far the judges agree",
        ["judges", "Spearman of P(toxic)", "kappa of flags", "flagged by both", "replies"],
        shown,
        "Over the sampled replies of all models.",
    )


def human_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Toxicity from annotators' labels and the judge together."""
    shown = [
        [
            row["method"],
            row["dataset"],
            interval(row["value"], row["low"], row["high"], 3),
            number(row["labels_only"], 3),
            f"{row['labels']:,}",
            number(row["effective"], 0),
            number(row["tau"], 2),
        ]
        for row in rows
    ]
    return Table(
        "Toxicity by people, with the judge's help",
        ["model", "test set", "toxic replies", "labels alone", "labels", "worth", "judge's weight"],
        shown,
        "Prediction-powered: unbiased however poor the judge is. Worth: how many labels would give "
        "the same precision without the judge.",
    )


def show_tables(recipe: Recipe, console: Console) -> None:
    """The main metrics of each test set, without intervals, and the findings."""
    summary = load_summary(recipe)
    words = recipe.report.wanted, recipe.report.unwanted
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        cells = {(r["method"], r["metric"]): r for r in summary if r["dataset"] == dataset}
        console.print(_terminal_table(dataset, cells, recipe))
        console.print()
    for finding in findings(summary, recipe, load_judges(recipe)):
        console.print(f"- {worded(sentence(finding), *words)}", markup=False)
    if any(row["low"] is None and row["value"] is not None for row in summary):
        console.print("- In parentheses: too few conversations for an interval.")


def _terminal_table(dataset: str, cells: Cells, recipe: Recipe) -> RichTable:
    words = recipe.report.wanted, recipe.report.unwanted
    chosen = [m for m in used(cells, recipe.models, MAIN, recipe.generate.samples) if m.brief]
    table = RichTable(
        title=dataset,
        title_justify="left",
        box=None,
        pad_edge=False,
        collapse_padding=True,  # so that nine columns fit into a terminal of 80
    )
    table.add_column("model", no_wrap=True)
    for metric in chosen:
        head = worded(metric.brief or metric.name, *words)
        table.add_column(head, justify="right", no_wrap=True)
    for model in [*recipe.models, REFERENCE]:
        row = [_brief(cells.get((model, m.name)), m.decimals) for m in chosen]
        if any(row):
            table.add_row(model, *row)
    return table


def _brief(row: EstimateRow | None, decimals: int) -> str:
    """The value alone; in parentheses where there are too few conversations for an interval."""
    if row is None:
        return ""
    value = number(row["value"], decimals)
    return value if row["low"] is not None or row["value"] is None else f"({value})"
