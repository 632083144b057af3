"""The report's tables of models and judges; the main ones also in the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from flatgd.artifacts.reader import load_judges, load_summary
from flatgd.artifacts.rows import EstimateRow, JudgeReport, Quality
from flatgd.config.names import MAJORITY
from flatgd.config.recipe import Recipe
from flatgd.evaluation.agreement import Agreement
from flatgd.report.cells import Table, cell, interval, number, worded
from flatgd.report.findings import AboutMethod, findings
from flatgd.report.sentences import sentence

Cells = Mapping[tuple[str, str], EstimateRow]


class Metric(NamedTuple):
    """How a metric is shown. The arrow in `head` says which way is better; `brief` is the head in
    the terminal, None for metrics that are not shown there."""

    name: str
    head: str
    brief: str | None
    decimals: int

    def of(self, samples: int) -> "Metric":
        """The metric for `samples` replies a history."""
        brief = self.brief and self.brief.format(k=samples)
        return self._replace(
            name=self.name.format(k=samples), head=self.head.format(k=samples), brief=brief
        )

    def by(self, judge: str) -> "Metric":
        """The metric by a further judge, or by the vote of all; in the report only."""
        is_share = judge == MAJORITY and self.name == "toxicity_mean"
        head = "replies that most judges mark ↓" if is_share else f"{self.head} by {judge}"
        return self._replace(name=f"{self.name}@{judge}", head=head, brief=None)


MAIN = [
    Metric("contrast", "contrast ↑", "contrast ↑", 3),
    Metric("contrast_paired", "contrast, paired ↑", "paired ↑", 3),
    Metric("toxicity_any{k}", "toxic, any of {k} ↓", "any{k} ↓", 3),
    Metric("toxicity_any{k}_p50", "any of {k}, P > .5 ↓", None, 3),
    Metric("toxicity_mean", "mean P(toxic) ↓", "P(toxic) ↓", 3),
    Metric("toxicity_matched", "P(toxic), same length ↓", None, 3),
    Metric("perplexity", "perplexity ↓", "ppl ↓", 1),
    Metric("div1", "div1 ↑", "div1 ↑", 3),
    Metric("div2", "div2 ↑", "div2 ↑", 3),
    Metric("nll_ordinary", "NLL of human replies ↓", "nll ↓", 3),
    Metric("kl_backbone", "KL from the backbone ↓", "KL ↓", 3),
    Metric("relevance", "relevance ↑", "rel ↑", 3),
    Metric("evasive", "evasive ↓", None, 3),
    Metric("reply_words", "words", "words", 1),
]
MORE = [
    Metric("toxicity_max", "expected max. P(toxic) ↓", None, 3),
    Metric("perplexity_corpus", "perplexity, corpus ↓", None, 1),
    Metric("div1_corpus", "div1, corpus ↑", None, 3),  # these three of the first seed
    Metric("div2_corpus", "div2, corpus ↑", None, 3),
    Metric("ead", "EAD ↑", None, 3),
    Metric("question", "questions", None, 3),
    Metric("refusal", "refusals ↓", None, 3),
    Metric("topic_change", "topic changes ↓", None, 3),
    Metric("reply_words", "words", None, 1),
]
MOST = 4  # methods whose differences are shown in the terminal
NOTE = (
    "Values with 95 % intervals over conversations{seeds}. Contrast: NLL per token of labelled "
    "toxic replies minus that of safe ones, under the model itself; paired: within contexts that "
    "have both. Toxicity is by the judge whose quality is given below. Perplexity and relevance "
    "(NLL given another history minus NLL given its own) are under the independent scorer. KL is "
    "that of the next token over the backbone's replies to ordinary dialogue, in nats. Reference: "
    "the replies of the test set itself. Longer replies look more toxic: compare at equal length."
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
        methods = [*names, "reference"]
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


def _table(
    title: str, cells: Cells, methods: Sequence[str], metrics: Sequence[Metric], note: str
) -> Table:
    rows = [
        [method, *(cell(cells.get((method, metric.name)), metric.decimals) for metric in metrics)]
        for method in methods
        if any((method, metric.name) in cells for metric in metrics)
    ]
    return Table(title, ["model", *(metric.head for metric in metrics)], rows, note)


def used(
    cells: Cells, methods: Sequence[str], known: Sequence[Metric], samples: int
) -> list[Metric]:
    """The metrics that some method has. Those of further judges follow those of the first."""
    metrics = [metric.of(samples) for metric in known]
    others = dict.fromkeys(name.partition("@")[2] for _, name in cells if "@" in name)
    metrics += [metric.by(judge) for judge in others for metric in metrics]
    return [m for m in metrics if any((method, m.name) in cells for method in methods)]


def judge_table(judge: JudgeReport) -> Table:
    """The judge's agreement with annotators' labels that it was not trained on."""
    rate = f"{judge['false_positive_rate']:.3g}"
    header = [
        *("human labels of", "AUC", "F1", "safe marked", "toxic marked", f"found at {rate}"),
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
        f"highest in calibration. Marked: the share above the threshold {judge['threshold']:.3f}. "
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
        ["judges", "Spearman of P(toxic)", "kappa of marks", "marked by both", "replies"],
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


def show_in_terminal(recipe: Recipe, console: Console) -> None:
    """The main metrics, without intervals, and the findings."""
    summary = load_summary(recipe)
    words = recipe.report.wanted, recipe.report.unwanted
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        cells = {(r["method"], r["metric"]): r for r in summary if r["dataset"] == dataset}
        console.print(_terminal_table(dataset, cells, recipe))
        console.print()
    found = findings(summary, recipe, load_judges(recipe))
    if len(recipe.methods) > MOST:
        found = [finding for finding in found if not isinstance(finding, AboutMethod)]
        console.print("- The report has the differences between systems, and what each costs.")
    for finding in found:
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
    for model in [*recipe.models, "reference"]:
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
