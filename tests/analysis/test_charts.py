"""Charts: scales, ticks, the places of bars and points, and texts that stay within."""

import re
import xml.etree.ElementTree as ET

import pytest

from fastbn.page import charts, page
from fastbn.page.scales import Scale, number


def test_scales_and_ticks():
    scale = Scale(1.0, 100.0, 0.0, 200.0, log=True)
    assert (scale(1), scale(10), scale(100)) == (0.0, pytest.approx(100.0), 200.0)
    assert scale.ticks(6) == pytest.approx([1, 3, 10, 30, 100])
    assert Scale(0.0, 0.9, 0.0, 1.0).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert Scale(1e-3, 1e9, 0.0, 1.0, log=True).ticks(5) == pytest.approx([1e-3, 1, 1e3, 1e6, 1e9])
    assert [number(v) for v in (0.0, 0.01234, 9.996, 1234.5, 1.2e-7, -3.14159)] == [
        "0",
        "0.0123",
        "10.0",
        "1,230",
        "1.2e-07",
        "-3.14",
    ]


def test_a_bar_s_and_a_point_s_place():
    svg = ET.fromstring(
        charts.bars(
            "t",
            [
                charts.Bar("a", [charts.ChartValue(50.0, 40.0, 100.0)]),
                charts.Bar("b", [charts.ChartValue(25.0)]),
            ],
            "",
        )
    )
    track, first, _, second = [float(rect.get("width")) for rect in svg.iter("rect")]
    assert first == pytest.approx(track / 2, abs=0.1) and second == pytest.approx(track / 4, abs=0.1)
    (whisker,) = [one.get("d") for one in svg.iter("path")]
    assert re.match(rf"M{0.4 * track:.1f} .*H{track:.1f}m", whisker)
    svg = ET.fromstring(
        charts.lines("t", [charts.Series("s", [(0.0, 0.0), (5.0, 1.0), (10.0, 2.0)])], "x", "y")
    )
    at = [re.findall(r"[\d.]+", one.get("transform")) for one in svg.iter("path") if one.get("transform")][:3]
    (x0, y0), (x1, y1), (x2, y2) = [(float(x), float(y)) for x, y in at]
    assert (
        y0 == 250.0
        and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        and y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    )
    # the axis goes on by a twentieth
    assert x2 - x0 == pytest.approx((charts.WIDTH - 12 - x0) / 1.05, abs=0.1)


def test_no_text_of_a_chart_leaves_it():
    """The width is what a glyph takes at most; names that are too long are among them."""
    long = "a provider's name of some eighty letters, which nobody would give, but who knows, after all"
    points = [(14.0, 1e-3), (14.5, 5.0), (866.0, 1e4)]
    drawn = [
        charts.bars("t", [charts.Bar(long, [charts.ChartValue(1234.5), None])], " MB", ("peak", "saved"))
    ]
    drawn += [
        charts.lines("t", [charts.Series(long, points, labels=("1", "2", "33"))], "x", "y", log=log)
        for log in (False, True)
    ]
    for svg in map(ET.fromstring, drawn):
        height = float(svg.get("viewBox").split()[3])
        for one in svg.iter("text"):
            width, x = charts.GLYPH * len(one.text), float(one.get("x"))
            left = {"start": x, "middle": x - width / 2, "end": x - width}[one.get("text-anchor")]
            assert left >= -1 and left + width <= charts.WIDTH + 1 and 0 < float(one.get("y")) <= height, (
                one.text
            )
        assert long in svg.get("aria-label") or long in "".join(svg.itertext())


def test_a_chart_of_nothing_is_nothing():
    assert (
        charts.bars("t", [], "")
        == charts.lines("t", [charts.Series("s", [(0.0, 1.0)])], "x", "y", log=True)
        == page.NOTHING
    )
    for point in ((3.0, 2.0), (0.0, 0.0)):
        assert charts.lines("t", [charts.Series("s", [point])], "x", "y")
    assert (
        page.section("empty", page.NOTHING)
        == page.figure(page.NOTHING, "t")
        == page.table(["a"], [])
        == page.NOTHING
    )
