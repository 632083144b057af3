"""What a chapter of the report is made of: sentences, tables, figures and forest plots."""

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from flatgd.report.cells import Table
from flatgd.report.charts import MINUS, Mark, round_ticks, tick_texts


class Panel(NamedTuple):
    """One frame of a figure; `name` is that of its file."""

    name: str
    title: str
    svg: Markup


class Figure(NamedTuple):
    """Panels with one legend, and the numbers behind them for those who read rather than look."""

    title: str
    panels: list[Panel]
    legend: list[tuple[Markup, str]]
    table: Table
    note: str = ""


class ForestRow(NamedTuple):
    """One value with its 95 % interval. `is_decided`: None where there is nothing to decide."""

    label: str
    mark: Mark
    value: float
    low: float
    high: float
    is_decided: bool | None = None


class Forest(NamedTuple):
    """Intervals below each other on one scale. `is_lower_better` is None where neither side is;
    of differences, `margin` is what may be lost."""

    dataset: str
    title: str
    rows: list[ForestRow]
    decimals: int
    is_lower_better: bool | None
    is_difference: bool
    margin: float | None = None

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of round values."""
        low, high = self._range()
        values = round_ticks(low, high, 3)
        return [(self.place(v), t) for v, t in zip(values, tick_texts(values), strict=True)]

    def place(self, value: float) -> float:
        """Where a value stands, in percent of the width."""
        low, high = self._range()
        return round(100 * (min(high, max(low, value)) - low) / (high - low), 2)

    def text(self, row: ForestRow) -> str:
        """The value and its interval; differences with their sign."""
        sign = "+" if self.is_difference else ""
        value, low, high = (f"{v:{sign}.{self.decimals}f}" for v in (row.value, row.low, row.high))
        return f"{value} [{low}, {high}]".replace("-", MINUS)

    @property
    def better(self) -> str:
        """Which side is better, in words."""
        if self.is_lower_better is None:
            return ""
        return "← better" if self.is_lower_better else "better →"

    @property
    def band(self) -> tuple[float, float] | None:
        """Left end and width of what may be lost, in percent."""
        if self.margin is None:
            return None
        ends = (0.0, self.margin) if self.is_lower_better else (-self.margin, 0.0)
        left, right = (self.place(end) for end in ends)
        return left, right - left

    def _range(self) -> tuple[float, float]:
        values = [v for row in self.rows for v in (row.low, row.high)]
        if self.is_difference:
            values.append(0.0)
        if self.margin is not None:
            values.append(self.margin if self.is_lower_better else -self.margin)
        room = 0.04 * (max(values) - min(values)) or 0.5
        return min(values) - room, max(values) + room

    @property
    def table(self) -> Table:
        """The same as a table."""
        rows = [[row.label, self.text(row)] for row in self.rows]
        return Table(self.title, ["model", "value [95% interval]"], rows, "")


class Chapter(NamedTuple):
    """One question of the report: its answer in sentences, then the evidence."""

    name: str
    title: str
    says: Sequence[str] = ()
    forests: Sequence[Forest] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    more: Sequence[Table] = ()
    """Tables that are folded until asked for; so are `values`."""
    values: Sequence[Forest] = ()

    @property
    def is_empty(self) -> bool:
        return not any(self[2:])
