"""The charts of distributions: histograms and strips stand where their numbers say, bands around their
curves."""

import re
import xml.etree.ElementTree as ET

import pytest

from fastbn.page import charts
from fastbn.page.scales import Scale


def path(svg, kind):
    """Return (x, y) of the corners of the one path of this class."""
    (found,) = [
        one
        for one in ET.fromstring(svg).iter("path")
        if one.get("class", "").startswith(kind) and one.get("d", "").count("L") > 1
    ]
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[\d.]+ [\d.]+", found.get("d"))]


def test_a_histogram_is_its_outline():
    svg = charts.histogram("γ", [0.0, 0.5, 1.0], [("one", 0, [0.25, 0.75])], "γ", "share")
    corners = path(svg, "curve")
    assert [x for x, _ in corners] == sorted(x for x, _ in corners) and len(corners) == 6
    foot, quarter, most = corners[0][1], corners[1][1], corners[3][1]
    assert corners[5][1] == foot and corners[2][1] == quarter and corners[4][1] == most
    assert (foot - most) / (foot - quarter) == pytest.approx(3, rel=0.02)
    assert "most, 0.750, between 0.500 and 1.00" in svg and "→" not in svg


def test_strips_shade_by_the_row_s_most():
    svg = charts.strips(
        "γ by layer", [("bn1 <a>", [0, 2, 4]), ("bn2", [1, 0, 0])], [0.0, 1.0, 2.0, 3.0], "γ", 2
    )
    cells = [one for one in ET.fromstring(svg).iter("rect") if one.get("class") == "cell k2"]
    assert [cell.get("fill-opacity") for cell in cells] == ["0.50", "1.00", "1.00"]
    first, second, other = (float(cell.get("x")) for cell in cells)
    width = float(cells[0].get("width"))
    assert second - first == pytest.approx(width, abs=0.1) and first - other == pytest.approx(width, abs=0.1)
    assert cells[1][0].text == "bn1 <a>: 4.00 in 2.00 … 3.00"
    assert charts.strips("nothing", [], [0.0, 1.0], "γ") == ""


def test_an_empty_row_is_drawn_empty():
    svg = charts.strips("γ", [("bn1", [0, 0])], [0.0, 1.0, 2.0], "γ")
    assert 'class="cell' not in svg and "bn1" in svg


def test_a_band_is_as_wide_as_it_says():
    series = charts.Series("mean", [(1, 2.0), (2, 4.0)], band=[(1.0, 3.0), (3.0, 5.0)])
    corners = path(charts.lines("mean", [series], "epochs", "accuracy"), "band")
    y = Scale(0.0, 5.25, 250, 28)
    assert [b for _, b in corners] == pytest.approx([y(3), y(5), y(3), y(1)], abs=0.1)
    flat = charts.Series("one", [(1, 2.0), (2, 4.0)], band=[(2.0, 2.0), (4.0, 4.0)])
    assert 'class="band' not in charts.lines("one", [flat], "epochs", "accuracy")


def test_few_round_points_are_ticked_and_others_are_not():
    def ticks(*xs):
        svg = charts.lines("a", [charts.Series("s", [(x, 1.0) for x in xs])], "seconds", "accuracy")
        return [one.text for one in ET.fromstring(svg).iter("text") if one.get("text-anchor") == "middle"]

    assert ticks(1, 2, 5) == ["1", "2", "5"]
    assert ticks(4.4531, 8.9952, 13.7281) == ["0", "5", "10"]
