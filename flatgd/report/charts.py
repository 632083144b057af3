"""Charts as SVG for light and dark pages. The same numbers give the same bytes.

Colours are CSS classes (pages/charts.css), so that a page's theme decides them. A chart is drawn at
the size at which it is shown: text has the page's size on a phone, too.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from flatgd.config.names import BACKBONE, EXPERTS, REFERENCE

COLOURS = 8  # classes c0 to c7, told apart by the colour-blind too
SHAPES = ("circle", "square", "diamond")
CHARACTER, BOLD = 6.3, 7.2  # width of a letter at 12 px
RADIUS = 4.0
MINUS = "−"
PANEL = (330, 230)


class Mark(NamedTuple):
    """How one model is drawn in every chart: its CSS class, and the shape of its points."""

    colour: str
    shape: str


class Line(NamedTuple):
    """Points of one model in data units, in order; `dash` is an SVG dash pattern."""

    label: str
    mark: Mark
    points: Sequence[tuple[float, float]]
    dash: str = ""


class Spot(NamedTuple):
    """A model in the plane; each of x and y is (value, low, high)."""

    label: str
    mark: Mark
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """One mark a model. Methods have colours in the order of the recipe; landmarks are grey."""
    landmarks = {
        BACKBONE: Mark("soft", "ring"),
        REFERENCE: Mark("soft", "diamond"),
        EXPERTS[0]: Mark("soft", "up"),
        EXPERTS[1]: Mark("soft", "down"),
    }
    methods = [name for name in names if name not in landmarks]
    own = {
        name: Mark(f"c{n % COLOURS}", SHAPES[n // COLOURS % len(SHAPES)])
        for n, name in enumerate(methods)
    }
    return landmarks | own


class Scale:
    """From data units to pixels."""

    def __init__(self, values: Sequence[float], start: float, end: float, is_log: bool):
        self.is_log = is_log and min(values) > 0
        low, high = self._unit(min(values)), self._unit(max(values))
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        self.low, self.high = low - room, high + room
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        part = (self._unit(value) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def _unit(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside."""
        if not self.is_log:
            return round_ticks(self.low, self.high, count)
        if self.high - self.low < 1:
            return round_ticks(10**self.low, 10**self.high, count)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [s * 10.0**d for d in decades for s in steps]
            inside = [v for v in found if self.low <= math.log10(v) <= self.high]
            if len(inside) >= min(3, count):
                return inside
        return inside


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """
    >>> round_ticks(0.03, 0.21, 4)
    [0.05, 0.1, 0.15, 0.2]
    """
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * s for s in (1, 2, 2.5, 5, 10) if power * s >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(n * step, digits) + 0.0 for n in range(first, last + 1)]


def panel(
    title: str,
    lines: Sequence[Line],
    x_label: str = "",
    *,
    log_x: bool = False,
    log_y: bool = False,
    diagonal: bool = False,
    x_ticks: Sequence[float] | None = None,
) -> Markup:
    """Curves or points in one frame. `diagonal`: draw the line y = x."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    if diagonal:
        xs = ys = [*xs, *ys]
    frame = _Frame(PANEL, xs, ys, log_x, log_y, x_label, x_ticks=x_ticks)
    drawn = list(frame.axes())
    if diagonal:
        (x1, y1), (x2, y2) = (frame.at(v, v) for v in (min(xs), max(xs)))
        drawn.append(_line(x1, y1, x2, y2, "zero"))
    for line in lines:
        drawn += _drawn(line, frame)
    return _svg(title, PANEL, drawn)


def plane(
    title: str,
    spots: Sequence[Spot],
    x_label: str,
    y_label: str,
    size: tuple[int, int],
    log_y: bool = False,
) -> Markup:
    """Models in the plane of two measures with their intervals, labelled where there is room."""
    xs = [value for spot in spots for value in spot.x]
    ys = [value for spot in spots for value in spot.y]
    frame = _Frame(size, xs, ys, False, log_y, x_label, y_label)
    drawn, taken = list(frame.axes()), _Taken(frame)
    for spot in spots:
        x, y = frame.at(spot.x[0], spot.y[0])
        taken.points.append(_box(x, y, x, y, 5))
        taken.bars.append(_box(frame.x(spot.x[1]), y, frame.x(spot.x[2]), y, 2))
        taken.bars.append(_box(x, frame.y(spot.y[2]), x, frame.y(spot.y[1]), 2))
        cross = _line(frame.x(spot.x[1]), y, frame.x(spot.x[2]), y, "bar")
        cross += _line(x, frame.y(spot.y[1]), x, frame.y(spot.y[2]), "bar")
        drawn.append(_group(spot.mark, cross))
    for spot in spots:
        x, y = frame.at(spot.x[0], spot.y[0])
        told = f"{spot.label}: {_told(spot.x)}, {_told(spot.y)}"
        drawn.append(_group(spot.mark, point(spot.mark.shape, x, y) + _title(told)))
    for covers_bars in (False, True):  # over bars only where there is no room beside them
        for spot in [spot for spot in spots if spot.label not in taken.labels]:
            x, y = frame.at(spot.x[0], spot.y[0])
            if place := taken.place(spot.label, x, y, covers_bars):
                text = _text(*place[:2], spot.label, f"name {spot.mark.colour}", place[2])
                drawn.append(text)
    return _svg(title, size, drawn)


def stacked(
    title: str, bars: Sequence[tuple[str, Sequence[tuple[str, str, float]]]], x_label: str
) -> Markup:
    """Bars from 0 to 1, each a label and its parts: (name, CSS class, share)."""
    width, height = PANEL[0], 44 * len(bars) + 42
    drawn = []
    for n, (label, parts) in enumerate(bars):
        top, begin = 44.0 * n, 0.0
        drawn.append(_text(0, top + 14, label, "label", "start"))
        for name, colour, share in parts:
            rect = (
                f'<rect class="part" x="{begin * width:.1f}" y="{top + 20:.1f}" '
                f'width="{share * width:.1f}" height="18"/>'
            )
            drawn.append(_group(Mark(colour, ""), rect + _title(f"{label}: {name} {share:.0%}")))
            begin += share
    for value, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        drawn.append(_text(value * width, height - 22, f"{value:g}", "tick", anchor))
    drawn.append(_text(width / 2, height - 6, x_label, "label", "middle"))
    return _svg(title, (width, height), drawn)


def key(mark: Mark, dash: str = "") -> Markup:
    """A model's mark for legends and lists."""
    line = "" if not dash else _line(0, 7, 22, 7, "curve", dash)
    shape = point(mark.shape, 11 if dash else 7, 7)
    width = 22 if dash else 14
    return Markup(  # numbers and fixed words alone
        f'<svg class="key" width="{width}" height="14" aria-hidden="true">'
        f"{_group(mark, line + shape)}</svg>"
    )


def point(shape: str, x: float, y: float, r: float = RADIUS) -> str:
    """A shape around (x, y); nothing for the shape ""."""
    if not shape:
        return ""
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "diamond": ((0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)),
        "up": ((0, -1.2 * r), (1.2 * r, r), (-1.2 * r, r)),
        "down": ((0, 1.2 * r), (1.2 * r, -r), (-1.2 * r, -r)),
    }
    if shape in corners:
        path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape])
        return f'<polygon class="point" points="{path}"/>'
    kind = "point ring" if shape == "ring" else "point"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>'


class _Frame:
    """The axes of a chart."""

    def __init__(
        self,
        size: tuple[int, int],
        xs: Sequence[float],
        ys: Sequence[float],
        log_x: bool,
        log_y: bool,
        x_label: str,
        y_label: str = "",
        x_ticks: Sequence[float] | None = None,
    ):
        self.size, self.x_label, self.y_label = size, x_label, y_label
        self.top = 24 if y_label else 10
        self.bottom = size[1] - (40 if x_label else 24)
        self.y = Scale(ys, self.bottom, self.top, log_y)
        self.y_ticks = self.y.ticks(5)
        self.y_texts = tick_texts(self.y_ticks)
        self.left = 10 + CHARACTER * max(map(len, self.y_texts), default=0)
        self.right = size[0] - 10
        self.x = Scale(xs, self.left, self.right, log_x)
        self.x_ticks = self.x.ticks(4 if size[0] < 400 else 6) if x_ticks is None else x_ticks

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x(x), self.y(y)

    def axes(self) -> list[str]:
        drawn = []
        for value, text in zip(self.y_ticks, self.y_texts, strict=True):
            y = self.y(value)
            drawn.append(_line(self.left, y, self.right, y, "grid"))
            drawn.append(_text(self.left - 6, y + 4, text, "tick", "end"))
        texts = tick_texts(self.x_ticks)
        for value, text in zip(self.x_ticks, texts, strict=True):
            x = self.x(value)
            drawn.append(_line(x, self.bottom, x, self.bottom + 4, "axis"))
            drawn.append(_text(x, self.bottom + 17, text, "tick", "middle"))
        drawn.append(_line(self.left, self.bottom, self.right, self.bottom, "axis"))
        if self.x_label:
            middle = (self.left + self.right) / 2
            drawn.append(_text(middle, self.size[1] - 6, self.x_label, "label", "middle"))
        if self.y_label:
            drawn.append(_text(0, 12, self.y_label, "label", "start"))
        return drawn


Box = tuple[float, float, float, float]  # left, top, right, bottom


class _Taken:
    """Where labels, points and bars already are: a label goes where it covers none of them."""

    def __init__(self, frame: _Frame):
        self.frame = frame
        self.points: list[Box] = []
        self.bars: list[Box] = []
        self.labels: dict[str, Box] = {}

    def place(
        self, text: str, x: float, y: float, covers_bars: bool
    ) -> tuple[float, float, str] | None:
        """Position and anchor; None where the label fits on no side of the point."""
        frame, width = self.frame, BOLD * len(text)
        taken = [*self.points, *self.labels.values(), *([] if covers_bars else self.bars)]
        for dx, dy, anchor in (
            *((7, -7, "start"), (7, 16, "start"), (-7, -7, "end"), (-7, 16, "end")),
            *((9, 4, "start"), (-9, 4, "end"), (0, -10, "middle"), (0, 19, "middle")),
        ):
            left = x + dx - width * {"start": 0, "middle": 0.5, "end": 1}[anchor]
            box = (left, y + dy - 11, left + width, y + dy + 2)
            fits = frame.left <= box[0] and box[2] <= frame.right
            fits &= frame.top - 8 <= box[1] and box[3] <= frame.bottom
            if fits and not any(_overlap(box, other) for other in taken):
                self.labels[text] = box
                return x + dx, y + dy, anchor
        return None


def _box(left: float, top: float, right: float, bottom: float, room: float) -> Box:
    return left - room, top - room, right + room, bottom + room


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def tick_texts(ticks: Sequence[float]) -> list[str]:
    """Tick labels with as many decimals as they need.

    >>> tick_texts([0.0, 0.05, 0.1]), tick_texts([1000.0, 2000.0])
    (['0.00', '0.05', '0.10'], ['1,000', '2,000'])
    """
    for decimals in range(6):
        texts = [f"{tick:,.{decimals}f}" for tick in ticks]
        close = [
            math.isclose(float(t.replace(",", "")), v, rel_tol=1e-6, abs_tol=1e-12)
            for t, v in zip(texts, ticks, strict=True)
        ]
        if all(close):
            return [text.replace("-", MINUS) for text in texts]
    return [f"{tick:g}" for tick in ticks]


def _drawn(line: Line, frame: _Frame) -> list[str]:
    places = [frame.at(x, y) for x, y in line.points]
    inside = ""
    if len(places) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        inside = f'<polyline class="curve" points="{path}"{dash}/>'
    if len(places) > 30:  # curves; their last value is told
        x, y = line.points[-1]
        return [_group(line.mark, inside + _title(f"{line.label}: {y:.4g} at {x:g}"))]
    drawn = [_group(line.mark, inside)] if inside else []
    for (px, py), (x, y) in zip(places, line.points, strict=True):
        told = _title(f"{line.label}: {y:.4g} at {x:g}")
        drawn.append(_group(line.mark, point(line.mark.shape, px, py, 3.0) + told))
    return drawn


def _told(triple: tuple[float, float, float]) -> str:
    return f"{triple[0]:.3g} [{triple[1]:.3g}, {triple[2]:.3g}]"


def _svg(title: str, size: tuple[int, int], drawn: Sequence[str]) -> Markup:
    return Markup(  # every text in it is escaped
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
        f'aria-label="{escape(title)}" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" height="{size[1]}">{"".join(drawn)}</svg>'
    )


def _group(mark: Mark, inside: str) -> str:
    return f'<g class="{mark.colour}">{inside}</g>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, dash: str = "") -> str:
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"{pattern}/>'
    )


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>"


def standalone(svg: str, css: str) -> str:
    """A chart as a file of its own, for a README or a paper."""
    head, rest = svg.split(">", 1)
    return f"{head}><style>{css}</style>{rest}\n"


def legend(named: Mapping[str, Mark], shown: Sequence[str]) -> list[tuple[Markup, str]]:
    """(mark, name) of the models shown, in order."""
    return [(key(named[name]), name) for name in shown]
