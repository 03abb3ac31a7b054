"""Charts as inline SVG for fastbn.page, from numbers alone: bars, lines (linear or logarithmic), histograms,
strips, roofline.

A chart is 420 units wide, so that its 12-unit text is legible on a phone as on paper. What a series is is
told by its name beside it, its mark and its dashes; colour only repeats it. Every mark has its value as a
tooltip, every chart a text that stands for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from fastbn.page.page import NOTHING, Html
from fastbn.page.scales import Scale, domain, number, short
from fastbn.page.svg import GLYPH, WIDTH, drawing, fit, labelled, legend, tooltip, written

DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 5")
MARKS = (  # around (0, 0): circle, square, triangle, diamond, plus, triangle on its tip
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "M-4 -4h8v8h-8z",
    "M0 -5.5l5 9h-10z",
    "M0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "M-1.7 -5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "M0 5.5l-5 -9h10z",
)


@dataclasses.dataclass(frozen=True)
class ChartValue:
    """A measurement with its quartiles, or another interval, where there is one."""

    middle: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Bar:
    """A name and one value per measure. `kind` is its colour, 0 … 5."""

    name: str
    values: Sequence[ChartValue | None]
    kind: int = 0


@dataclasses.dataclass(frozen=True)
class Series:
    """Points (x, y), joined by a line or not, each with a label or none. `look` sets mark and dashes apart
    within a colour.
    band: (low, high) at each point, or nothing."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: int = 0
    look: int = 0
    joined: bool = True
    marked: bool = True
    labels: Sequence[str] = ()
    band: Sequence[tuple[float, float]] = ()


def bars(
    title: str,
    rows: Sequence[Bar],
    unit: str,
    measures: Sequence[str] = ("",),
    rule: float | None = None,
    kinds: Sequence[tuple[str, int]] = (),
) -> Html:
    """Draw horizontal bars: a name above its bars, one for each measure that it has, and a whisker where a
    value has an interval. `rule` is a line to compare with. `unit` follows a value at once: " ms", "×".
    `kinds`: what the colours mean, for a legend; several measures have one too."""
    rows = [row for row in rows if any(row.values)]
    if not rows:
        return NOTHING
    most = max(value.high or value.middle for row in rows for value in row.values if value)
    widest = max(
        len(_value(value, unit, measure))
        for row in rows
        for value, measure in zip(row.values, measures, strict=True)
        if value
    )
    scale = Scale(0.0, max(most, rule or 0.0) or 1.0, 0.0, WIDTH - 10 - GLYPH * widest)
    drawn, top = [], 2.0
    for row in rows:
        drawn.append(written(0, top + 12, fit(row.name, WIDTH)))
        top += 18
        for i, (value, measure) in enumerate(zip(row.values, measures, strict=True)):
            if value is None:
                continue
            end, low, high = (
                scale(v) for v in (value.middle, value.low or value.middle, value.high or value.middle)
            )
            spread = f" ({number(value.low)} … {number(value.high)})" if value.low and value.high else ""
            tip = f"{row.name}: {_value(value, unit, measure)}{spread}"
            second = " second" if i else ""
            drawn.append(f'<rect class="track" x="0" y="{top:g}" width="{scale.end:.1f}" height="12" />')
            drawn.append(
                f'<rect class="bar{second} k{row.kind}" x="0" y="{top:g}" width="{end:.1f}" '
                f'height="12">{tooltip(tip)}</rect>'
            )
            if high > low:
                path = f"M{low:.1f} {top + 3:g}v6m0 -3H{high:.1f}m0 -3v6"
                drawn.append(f'<path class="whisker" d="{path}">{tooltip(tip)}</path>')
            drawn.append(written(max(end, high) + 6, top + 10.5, _value(value, unit, measure)))
            if rule is not None:
                drawn.append(
                    f'<path class="axis" stroke-dasharray="2 2" d="M{scale(rule):.1f} '
                    f'{top - 2:g}v16">{tooltip(number(rule))}</path>'
                )
            top += 15
        top += 7
    said = "; ".join(
        f"{row.name} {', '.join(_value(v, unit, m) for v, m in zip(row.values, measures, strict=True) if v)}"
        for row in rows
    )
    if len(measures) > 1:
        kind = rows[0].kind
        entries = [(name, f"bar{' second' if i else ''} k{kind}") for i, name in enumerate(measures)]
    else:
        there = {row.kind for row in rows}
        entries = [(name, f"bar k{kind}") for name, kind in kinds if kind in there]
    swatches, top = legend(top, entries) if entries else ([], top)
    return drawing(f"{title}: {said}", top - 4, [*drawn, *swatches])


def lines(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log: bool = False,
    said: str = "",
    log_y: bool | None = None,
) -> Html:
    """Draw series over two axes, both logarithmic or both linear from 0; `log_y` is y's own. x is ticked
    where points are, if these are few and round. Points that a logarithm can't show are left out. `said`
    stands for the chart instead of its points."""
    log_y = log if log_y is None else log_y
    if log or log_y:
        series = [dataclasses.replace(s, points=[p for p in s.points if min(p) > 0]) for s in series]
    series = [s for s in series if s.points]
    if not series:
        return NOTHING
    xs, ys = (sorted({p[i] for s in series for p in s.points}) for i in (0, 1))
    ys = sorted([*ys, *(v for s in series for ends in s.band for v in ends)])
    (left, right), (bottom, top) = domain(xs, log), domain(ys, log_y)
    y = Scale(bottom, top, 250, 28, log_y)
    margin = 8 + GLYPH * max(len(short(v)) for v in y.ticks())
    x = Scale(left, right, margin, WIDTH - 12, log)
    drawn = [written(0, 12, y_label, "soft"), written(WIDTH - 2, 286, x_label, "soft", "end")]
    for v in y.ticks():
        drawn.append(f'<path class="grid" d="M{margin:.1f} {y(v):.1f}H{WIDTH - 12}" />')
        drawn.append(written(margin - 6, y(v) + 4, short(v), "soft", "end"))
    drawn.append(f'<path class="axis" d="M{margin:.1f} 250H{WIDTH - 12}" />')
    after = -math.inf
    few = len(xs) <= 8 and all(v == round(v, 2) for v in xs) and any(s.marked and s.joined for s in series)
    for v in xs if few else x.ticks():
        half = GLYPH * len(short(v)) / 2
        if x(v) - half > after:
            drawn.append(
                f'<path class="axis" d="M{x(v):.1f} 250v4" '
                f"/>{written(min(x(v), WIDTH - half), 267, short(v), 'soft', 'middle')}"
            )
            after = x(v) + half + 4
    taken = [(x(a), y(b), 5.0) for s in series if s.marked for a, b in s.points]
    for i, s in enumerate(series):
        spots, row = [(x(a), y(b)) for a, b in s.points], 306.0 + 18 * i
        tips = [f"{s.name}: {number(a)} → {number(b)}" for a, b in s.points]
        around = [(at, (y(low), y(high))) for (at, _), (low, high) in zip(spots, s.band, strict=False)]
        drawn += [*_band(s, around), *_drawn(s, spots, tips), *labelled(s.labels, spots, taken)]
        drawn += [f'<path class="curve k{s.kind}"{_dashes(s)} d="M0 {row:g}h28" />'] if s.joined else []
        drawn += [*_drawn(s, [(14.0, row)], [s.name]), written(34, row + 4, fit(s.name, WIDTH - 34))]
    said = said or "; ".join(
        f"{s.name}: " + ", ".join(f"{number(a)} → {number(b)}" for a, b in s.points) for s in series
    )
    return drawing(f"{title}, {y_label} against {x_label}. {said}", 300 + 18 * len(series), drawn)


def histogram(
    title: str,
    edges: Sequence[float],
    heights: Sequence[tuple[str, int, Sequence[float]]],
    x_label: str,
    y_label: str,
) -> Html:
    """Draw outlines over the same bins, laid over each other: (name, kind, a height per bin) each, between
    `edges`, one more than bins."""
    series, said = [], []
    for i, (name, kind, shares) in enumerate(heights):
        tops = [0.0, *(h for h in shares for _ in (0, 1)), 0.0]
        series.append(
            Series(name, [*zip([e for e in edges for _ in (0, 1)], tops, strict=True)], kind, i, marked=False)
        )
        most = max(range(len(shares)), key=lambda at: shares[at])
        said.append(
            f"{name}: most, {number(shares[most])}, between {number(edges[most])} and "
            f"{number(edges[most + 1])}"
        )
    return lines(title, series, x_label, y_label, said="; ".join(said))


def strips(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    edges: Sequence[float],
    x_label: str,
    kind: int = 0,
) -> Html:
    """Draw a row per name: histograms over the same bins as shades, strongest where a row has its most.
    `edges` is one longer than a row."""
    if not rows:
        return NOTHING
    margin = min(8 + GLYPH * max(len(name) for name, _ in rows), WIDTH * 0.45)
    x = Scale(edges[0], edges[-1], margin, WIDTH - 12)
    drawn, bottom = [], 4.0 + 16 * len(rows)
    for i, (name, shares) in enumerate(rows):
        top, most = 4.0 + 16 * i, max(shares) or 1.0
        drawn.append(written(0, top + 11, fit(name, margin)))
        drawn.append(
            f'<rect class="track" x="{x.start:.1f}" y="{top:g}" width="{x.end - x.start:.1f}" height="14" />'
        )
        for low, high, height in zip(edges[:-1], edges[1:], shares, strict=True):
            if height:
                place = f'x="{x(low):.1f}" y="{top:g}" width="{x(high) - x(low):.2f}" height="14"'
                tip = tooltip(f"{name}: {number(height)} in {number(low)} … {number(high)}")
                drawn.append(
                    f'<rect class="cell k{kind}" {place} fill-opacity="{height / most:.2f}">{tip}</rect>'
                )
    for v in x.ticks():
        drawn.append(
            f'<path class="axis" d="M{x(v):.1f} {bottom:g}v4" '
            f"/>{written(x(v), bottom + 17, short(v), 'soft', 'middle')}"
        )
    drawn.append(written(WIDTH - 2, bottom + 34, x_label, "soft", "end"))
    return drawing(f"{title}, {x_label}, of {', '.join(name for name, _ in rows)}", bottom + 40, drawn)


def roofline(title: str, series: Sequence[Series], bytes_per_second: float, flops_per_second: float) -> Html:
    """Draw points (FLOP per byte, FLOP/s), not joined, under what the machine allows: min(bytes/s · x,
    FLOP/s)."""
    xs = [p[0] for s in series for p in s.points if min(p) > 0]
    if not xs:
        return NOTHING
    ridge = flops_per_second / bytes_per_second
    ends = sorted({min(*xs, ridge) / 1.5, ridge, max(*xs, ridge) * 1.5})
    roof = Series(
        "the machine's own rates",
        [(x, min(bytes_per_second * x, flops_per_second) / 1e9) for x in ends],
        5,
        1,
        marked=False,
    )
    points = [
        dataclasses.replace(s, joined=False, points=[(x, y / 1e9) for x, y in s.points]) for s in series
    ]
    return lines(title, [roof, *points], "FLOP a byte", "GFLOP/s", log=True)


def _drawn(s: Series, spots: Sequence[tuple[float, float]], tips: Sequence[str]) -> list[str]:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
    curve = (
        [f'<path class="curve k{s.kind}"{_dashes(s)} d="{path}" />'] if s.joined and len(spots) > 1 else []
    )
    if not s.marked:
        return curve
    mark = f'<path class="mark k{s.kind}" d="{MARKS[s.look % len(MARKS)]}"'
    places = [f'transform="translate({x:.1f} {y:.1f})"' for x, y in spots]
    return curve + [f"{mark} {place}>{tooltip(tip)}</path>" for place, tip in zip(places, tips, strict=False)]


def _band(s: Series, around: Sequence[tuple[float, tuple[float, float]]]) -> list[str]:
    if not any(low != high for _, (low, high) in around):
        return []
    path = [f"{x:.1f} {high:.1f}" for x, (_, high) in around] + [
        f"{x:.1f} {low:.1f}" for x, (low, _) in reversed(around)
    ]
    return [f'<path class="band k{s.kind}" d="M{"L".join(path)}z" />']


def _value(value: ChartValue, unit: str, measure: str) -> str:
    return f"{measure} {number(value.middle)}{unit}".strip()


def _dashes(s: Series) -> str:
    dashes = DASHES[s.look % len(DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""
