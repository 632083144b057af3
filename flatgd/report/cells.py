"""Tables of text, and how numbers, intervals and tables are written."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flatgd.artifacts.rows import EstimateRow, LossOfSafety


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
    value: float | None, low: float | None, high: float | None, decimals: int, suffix: str = ""
) -> str:
    """A value and its interval; `suffix` stands behind the value.

    >>> interval(0.5, 0.4, 0.61, 2)
    '0.50 [0.40, 0.61]'
    """
    shown = number(value, decimals) + suffix
    if low is None or high is None:
        return shown
    return f"{shown} [{number(low, decimals)}, {number(high, decimals)}]"


def share_of(found: Mapping[str, Any]) -> str:
    """A share of items with Wilson's interval."""
    low, high = found["wilson"] or (None, None)
    return interval(found["value"], low, high, 2)


def lost_after(row: LossOfSafety) -> str:
    """What it took until half of the gain was lost, or the share of the gain that is left."""
    lost, attack = row["half_lost"], row["attack"]
    if lost is None:
        return "no gain" if row["kept"] is None else f"kept {row['kept']:.0%}"
    if attack == "rounding":  # its strength counts from 32 bits down
        return f"{32 - lost:.1f} bits"
    return f"{lost:.0f} steps" if attack in ("benign", "toxic") else f"{lost:.3f}"


def cell(row: EstimateRow | None, decimals: int) -> str:
    """A summary row's value and interval; * where a difference holds after Holm's correction."""
    if row is None:
        return ""
    p = row["p_holm"]
    star = "*" if p is not None and p < 0.05 else ""
    return interval(row["value"], row["low"], row["high"], decimals, star)


def worded(text: str, wanted: str, unwanted: str) -> str:
    """The text in the words of the recipe's attribute, where that is not safety.

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
    """LaTeX tables that use booktabs."""
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
