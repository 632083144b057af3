"""The report's tables: plain cells, rendered as Markdown, HTML or in the terminal."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table as RichTable

from flatgd.recipe import Recipe
from flatgd.report.findings import findings

Row = dict[str, Any]


class Table(NamedTuple):
    """Cells are text; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


class Metric(NamedTuple):
    """How a metric is shown; the arrow points to better. `brief` heads it in the terminal."""

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
        """The metric by a further judge, for the report alone."""
        return self._replace(
            name=f"{self.name}@{judge}", head=f"{self.head} by {judge}", brief=None
        )


METRICS = [
    Metric("contrast", "contrast ↑", "contrast ↑", 3),
    Metric("contrast_paired", "contrast, paired ↑", "paired ↑", 3),
    Metric("toxicity_any{k}", "toxic, any of {k} ↓", "any{k} ↓", 3),
    Metric("toxicity_any{k}_p50", "any of {k}, P > .5 ↓", None, 3),
    Metric("toxicity_mean", "mean P(toxic) ↓", "P(toxic) ↓", 3),
    Metric("perplexity", "perplexity ↓", "ppl ↓", 1),
    Metric("div1", "div1 ↑", "div1 ↑", 3),
    Metric("div2", "div2 ↑", "div2 ↑", 3),
    Metric("reply_words", "words", "words", 1),
]

NOTE = (
    "Value with its 95 % interval, by bootstrap over conversations. contrast: NLL per token of "
    "human-labelled toxic replies less that of safe ones under the model itself; paired: within "
    "contexts that have both. Toxicity by the judge whose quality is given below; perplexity under "
    "the independent scorer; reference: the test set's own safe replies."
)


def main_tables(summary: Sequence[Row], names: Sequence[str], samples: int) -> list[Table]:
    """One table a test set, one row a model; then the paired differences. The first has a note."""
    tables = []
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        cells = {
            (row["method"], row["metric"]): row for row in summary if row["dataset"] == dataset
        }
        differences = [m for m in dict.fromkeys(m for m, _ in cells) if " - " in m]
        for title, methods in (
            (f"Test set {dataset}", [*names, "reference"]),
            (f"Test set {dataset}: paired differences", differences),
        ):
            tables.append(_table(title, cells, methods, samples))
    return [tables[0]._replace(note=NOTE), *tables[1:]]


def _table(
    title: str, cells: dict[tuple[str, str], Row], methods: Sequence[str], samples: int
) -> Table:
    used = _used(cells, methods, samples)
    rows = [
        [method, *(_cell(cells.get((method, metric.name)), metric.decimals) for metric in used)]
        for method in methods
        if any((method, metric.name) in cells for metric in used)
    ]
    return Table(title, ["model", *(metric.head for metric in used)], rows, note="")


def _used(cells: dict[tuple[str, str], Row], methods: Sequence[str], samples: int) -> list[Metric]:
    """The metrics that some method has; those of further judges after the first one's."""
    metrics = [metric.of(samples) for metric in METRICS]
    others = dict.fromkeys(name.partition("@")[2] for _, name in cells if "@" in name)
    metrics += [metric.by(judge) for judge in others for metric in metrics]
    return [m for m in metrics if any((method, m.name) in cells for method in methods)]


def judge_table(judge: Row) -> Table:
    """The judge's agreement with human labels it was not trained on."""
    header = ["human labels of", "AUC", "F1", "safe marked", "toxic marked", "replies", "toxic"]
    rows = [
        [
            part["rows_of"],
            *(
                number(part[key], 3)
                for key in ("auc", "f1", "false_positive_rate", "true_positive_rate")
            ),
            f"{part['rows']:,}",
            f"{part['toxic']:,}",
        ]
        for part in judge["quality"]
    ]
    note = (
        f"{judge['about']}, of other conversations. F1 at P > .5; marked: the share above the "
        f"threshold {judge['threshold']:.3f}."
    )
    return Table(f"The judge {judge['name']}", header, rows, note)


def number(value: float | None, decimals: int) -> str:
    return "undefined" if value is None else f"{value:.{decimals}f}"


def _cell(row: Row | None, decimals: int) -> str:
    if row is None:
        return ""
    value = number(row["value"], decimals)
    if row["low"] is None:
        return value
    return f"{value} [{number(row['low'], decimals)}, {number(row['high'], decimals)}]"


def _brief(row: Row | None, decimals: int) -> str:
    """The value alone, in parentheses where too few conversations stand behind it."""
    if row is None:
        return ""
    value = number(row["value"], decimals)
    return value if row["low"] is not None or row["value"] is None else f"({value})"


def markdown(table: Table) -> str:
    lines = [f"## {table.title}", "", "| " + " | ".join(table.header) + " |"]
    lines.append("|" + "---|" * len(table.header))
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join([*lines, "", table.note]).rstrip()


def show_in_terminal(recipe: Recipe, console: Console) -> None:
    """The main figures, values alone, and what was found."""
    summary = json.loads((recipe.output / "report/summary.json").read_text())
    for dataset in dict.fromkeys(row["dataset"] for row in summary):
        cells = {(r["method"], r["metric"]): r for r in summary if r["dataset"] == dataset}
        used = [m for m in _used(cells, recipe.models, recipe.generate.samples) if m.brief]
        table = RichTable(
            title=dataset,
            title_justify="left",
            box=None,
            pad_edge=False,
            collapse_padding=True,  # nine columns fit into a terminal of 80
        )
        table.add_column("model", no_wrap=True)
        for metric in used:
            table.add_column(metric.brief or metric.name, justify="right", no_wrap=True)
        for model in [*recipe.models, "reference"]:
            found = [(cells.get((model, metric.name)), metric.decimals) for metric in used]
            shown = [_brief(row, decimals) for row, decimals in found]
            if any(shown):
                table.add_row(model, *shown)
        console.print(table)
        console.print()
    for sentence in findings(summary, recipe):
        console.print(f"- {sentence}", markup=False)
    if any(row["low"] is None and row["value"] is not None for row in summary):
        console.print("- In parentheses: too few conversations for an interval.")
