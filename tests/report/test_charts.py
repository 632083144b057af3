"""Charts: scales, marks, labels, and the same bytes for the same numbers."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from flatgd.report.blocks import Forest, ForestRow
from flatgd.report.charts import (
    Line,
    Mark,
    Scale,
    Spot,
    marks,
    panel,
    plane,
    round_ticks,
    stacked,
    standalone,
)
from flatgd.report.figures import MOST_POINTS, thinned

BLUE = Mark("c0", "circle")


def spots(*places: tuple[float, float]) -> list[Spot]:
    return [
        Spot(f"model {n}", Mark(f"c{n}", "square"), (x, x - 0.1, x + 0.1), (y, y - 1, y + 1))
        for n, (x, y) in enumerate(places)
    ]


def test_methods_have_colours_in_their_order_and_landmarks_are_grey() -> None:
    named = marks(["backbone", "clean_expert", *(f"m{n}" for n in range(17))])
    assert named["backbone"].colour == named["reference"].colour == "soft"
    assert [named[f"m{n}"].colour for n in (0, 7, 8)] == ["c0", "c7", "c0"]
    methods = [named[f"m{n}"] for n in range(17)]
    assert len(set(methods)) == 17  # colour and shape together tell them apart


@pytest.mark.parametrize("is_log", [False, True])
def test_a_scale_maps_the_ends_inside_and_keeps_the_order(is_log: bool) -> None:
    scale = Scale([1.0, 10.0, 1000.0], 50.0, 250.0, is_log)
    places = [scale(v) for v in (1.0, 10.0, 1000.0)]
    assert 50 < places[0] < places[1] < places[2] < 250
    assert all(50 <= scale(tick) <= 250 for tick in scale.ticks(4))
    assert len(scale.ticks(4)) >= 3
    if is_log:
        assert places[1] - places[0] == pytest.approx((places[2] - places[1]) / 2)


def test_a_scale_of_one_value_and_of_zero_has_room() -> None:
    for value in (0.0, 3.0, -2.0):
        assert Scale([value], 0.0, 100.0, False)(value) == pytest.approx(50.0)
    assert not Scale([0.0, 1.0], 0.0, 1.0, True).is_log  # zero has no logarithm


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.031, 0.22), (-4.0, 13.0), (1200.0, 98_000.0), (-0.0003, 0.0001)):
        ticks = round_ticks(low, high, 4)
        assert 2 <= len(ticks) <= 6
        assert low <= ticks[0] < ticks[-1] <= high
        gaps = [b - a for a, b in pairwise(ticks)]
        assert gaps == pytest.approx([gaps[0]] * len(gaps))


def test_charts_are_well_formed_and_the_same_for_the_same_numbers() -> None:
    hostile = "<script>alert(1)</script> & co"
    lines = [Line(hostile, BLUE, [(0, 1.0), (1, 4.0)]), Line("b", BLUE, [(0, 2.0)], "4 3")]
    drawn = [
        panel(hostile, lines, hostile, log_y=True),
        panel("d", lines, diagonal=True),
        plane(hostile, spots((0.1, 10), (0.4, 40)), "x", hostile, (600, 400)),
        stacked(hostile, [(hostile, [("one", "c0", 0.25), ("two", "c1", 0.75)])], "share"),
    ]
    again = [
        panel(hostile, lines, hostile, log_y=True),
        panel("d", lines, diagonal=True),
        plane(hostile, spots((0.1, 10), (0.4, 40)), "x", hostile, (600, 400)),
        stacked(hostile, [(hostile, [("one", "c0", 0.25), ("two", "c1", 0.75)])], "share"),
    ]
    assert drawn == again
    for svg in drawn:
        ElementTree.fromstring(svg)
        assert "<script" not in svg
    alone = standalone(drawn[0], ".c0 { --c: #000; }")
    assert ElementTree.fromstring(alone)[0].text == ".c0 { --c: #000; }"


def test_labels_cover_no_other_label() -> None:
    crowd = spots(*((0.2 + n / 300, 20 + n / 5) for n in range(8)), (0.9, 90))
    svg = plane("crowd", crowd, "x", "y", (600, 400))
    found = re.findall(
        r'<text class="name [^"]*" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)"', svg
    )
    assert 1 < len(found) <= 9
    boxes = []
    for x, y, anchor in found:
        left = float(x) - {"start": 0, "middle": 22, "end": 44}[anchor]
        boxes.append((left, float(y) - 11, left + 44, float(y) + 2))
    for n, a in enumerate(boxes):
        for b in boxes[n + 1 :]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_curves_are_thinned_to_what_can_be_seen() -> None:
    points = [(float(n), float(n)) for n in range(1000)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS + 1
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    assert thinned(points[:5]) == points[:5]


def test_a_forest_places_its_intervals() -> None:
    rows = [ForestRow("a − b", BLUE, -0.07, -0.13, -0.02, True)]
    forest = Forest("bad", "any", rows, 3, True, True, margin=0.05)
    assert forest.place(-0.13) < forest.place(-0.07) < forest.place(0.0) <= 100
    assert forest.text(rows[0]) == "−0.070 [−0.130, −0.020]"
    left, width = forest.band or (0.0, 0.0)
    assert left == forest.place(0.0)
    assert left + width == pytest.approx(forest.place(0.05))
    higher = forest._replace(is_lower_better=False)
    assert sum(higher.band or (0.0, 0.0)) == pytest.approx(higher.place(0.0))
    assert (forest.better, higher.better) == ("← better", "better →")
    assert all(0 <= place <= 100 for place, _ in forest.ticks)
    one = Forest("bad", "one", [ForestRow("a", BLUE, 0.0, 0.0, 0.0)], 3, None, False)
    assert one.place(0.0) == 50.0
