"""A table of text, and how numbers, intervals and tables are written."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Table(NamedTuple):
    """Cells are text; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str


def number(value: float | None, decimals: int) -> str:
    """
    >>> number(None, 2), number(0.126, 2)
    ('undefined', '0.13')
    """
    return "undefined" if value is None else f"{value:.{decimals}f}"


def significant(value: float | None, digits: int = 3) -> str:
    """
    >>> significant(0.0123456), significant(1234.5), significant(None)
    ('0.0123', '1,230', 'undefined')
    """
    if value is None:
        return "undefined"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:.{digits}g}"


def interval(
    value: float | None, low: float | None, high: float | None, decimals: int, mark: str = ""
) -> str:
    """
    >>> interval(0.5, 0.4, 0.61, 2)
    '0.50 [0.40, 0.61]'
    """
    shown = number(value, decimals) + mark
    if low is None or high is None:
        return shown
    return f"{shown} [{number(low, decimals)}, {number(high, decimals)}]"


def share_of(found: Mapping[str, Any]) -> str:
    """A share of items with Wilson's interval."""
    low, high = found["wilson"] or (None, None)
    return interval(found["value"], low, high, 2)


def cell(row: Row | None, decimals: int) -> str:
    """A summary row's value and interval; * where a difference holds after Holm's correction."""
    if row is None:
        return ""
    p = row.get("p_holm")
    mark = "*" if p is not None and p < 0.05 else ""
    return interval(row["value"], row["low"], row["high"], decimals, mark)


def worded(text: str, wanted: str, unwanted: str) -> str:
    """The text of another attribute than safety.

    >>> worded("P(toxic) of safe replies, toxic_expert", "question", "statement")
    'P(statement) of question replies, toxic_expert'
    """
    return re.sub(r"\bsafe\b", wanted, re.sub(r"\btoxic\b", unwanted, text))


def markdown(table: Table) -> str:
    lines = [f"## {table.title}", "", "| " + " | ".join(table.header) + " |"]
    lines.append("|" + "---|" * len(table.header))
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    return "\n".join([*lines, "", table.note]).rstrip()


_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "●": r"$\bullet$",
    "○": r"$\circ$",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "‖": r"$\|$",
}


def latex(tables: Sequence[Table]) -> str:
    """Tables for a paper, in booktabs' form."""
    return "\n".join(["% needs \\usepackage{booktabs}", *(_tabular(table) for table in tables)])


def _tabular(table: Table) -> str:
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in [table.header, *table.rows]]
    return "\n".join(
        [
            r"\begin{table}[t]\centering\small",
            rf"\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    """
    >>> _escaped("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)
