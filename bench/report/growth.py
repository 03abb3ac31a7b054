"""The growth of time and memory with depth, batch and width: curves, the exponents fitted to them, their
steepest parts, their charts."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.records.rows import Record, Row
from bench.report.compare import COLOUR, KINDS, Case, kind_of, measured, named
from fastbn.page.charts import Series, lines
from fastbn.page.page import NOTHING, Html, figure, figures, paragraph, section

AXES = {"depth": "depth, layers", "batch_size": "batch, images", "width": "width, channels"}
MEASURES = {
    "seconds": ("time", "ms", 1e3),
    "saved_bytes": ("saved for the backward", "MB", 1e-6),
    "peak_memory_bytes": ("peak memory", "MB", 1e-6),
}
LEAST = 3  # points that an exponent is fitted to: any curve fits two
EXPONENTS = (
    "A legend's exponent is fitted to all points by least squares; after ≤ stands the steepest "
    "between neighbours. 1 is linear."
)


@dataclass(frozen=True)
class Curve:
    """`value` of one provider along one axis, everything else being equal: value ∝ axis^exponent."""

    axis: str  # a field of Row
    value: str  # another
    row: Row  # one of its rows: whose curve it is, and what is held fixed
    points: tuple[tuple[float, float], ...]  # sorted

    @property
    def exponent(self) -> float | None:
        """Return the exponent e of y ∝ x^e by least squares over the logarithms; None under three points."""
        if len(self.points) < LEAST:
            return None
        logs = [(math.log(x), math.log(y)) for x, y in self.points]
        return statistics.linear_regression(*zip(*logs, strict=True)).slope

    @property
    def steepest(self) -> float:
        """Return the largest exponent between neighbours: a cliff stands far above the fitted one."""
        return max(math.log(d / b) / math.log(c / a) for (a, b), (c, d) in itertools.pairwise(self.points))

    @property
    def fixed(self) -> str:
        """What is held fixed, in words."""
        row, size = self.row, self.row.size
        parts = {
            "family": row.family and f"{row.family} family",
            "depth": row.depth and f"depth {row.depth}",
            "width": row.width and f"width {row.width}",
            "size": size and f"{size}×{size}",
            "batch_size": row.batch_size and f"batch {row.batch_size}",
        }
        return ", ".join(part for name, part in parts.items() if part and name != self.axis)

    @property
    def legend(self) -> str:
        name, exponent = named(self.row, self.row.precision != "fp32"), self.exponent
        return name if exponent is None else f"{name} ∝ x^{exponent:.2f} (≤ {self.steepest:.2f})"

    def __str__(self) -> str:
        axis, first, last = self.axis.replace("_size", ""), self.points[0][0], self.points[-1][0]
        grows = f"{self.value} ∝ {axis}^{self.exponent:.2f} from {first} to {last}"
        return f"{self.row.provider}: {grows}, at the steepest {self.steepest:.2f}"


def every(rows: Iterable[Row], axis: str, value: str) -> list[Curve]:
    """Return every line of these rows along an axis, however short; failed rows are left out."""
    groups: dict[tuple[object, ...], tuple[Row, dict[float, float]]] = {}
    for row in rows:
        x, y = getattr(row, axis), getattr(row, value)
        if measured(row) and x and y:
            held = tuple(getattr(row, name) for name in (*AXES, "size", "family") if name != axis)
            _, points = groups.setdefault((row.provider, row.trains, row.precision, *held), (row, {}))
            points[x] = y
    return [Curve(axis, value, row, tuple(sorted(points.items()))) for row, points in groups.values()]


def fitted(rows: Iterable[Row]) -> list[Curve]:
    """Return every curve of the scaling level that an exponent can be fitted to."""
    scaling = [row for row in rows if row.level == "scaling"]
    along = (every(scaling, axis, value) for axis in AXES for value in MEASURES)
    return [curve for own in along for curve in own if len(curve.points) >= LEAST]


def curves(
    records: Sequence[Record], levels: Sequence[str], axis: str, metric: str
) -> dict[tuple[int, str], list[Curve]]:
    """Return curves by (the record's place, what is held fixed), from the first of these levels that has any.

    Where sweeps over other axes cross, a few points lie on a line by chance: those of two are left out if
    there are longer ones."""
    for level in levels:
        found: dict[tuple[int, str], list[Curve]] = {}
        for place, record in enumerate(records, 1):
            for curve in every((row for row in record.rows if row.level == level), axis, metric):
                found.setdefault((place, curve.fixed), []).append(curve)
        longest = max((len(curve.points) for own in found.values() for curve in own), default=0)
        if longest > 1:
            least = min(longest, LEAST)
            long = {key: [c for c in own if len(c.points) >= least] for key, own in found.items()}
            order = {kind: place for place, kind in enumerate(KINDS)}
            return {key: sorted(own, key=lambda c: order[kind_of(c.row)]) for key, own in long.items() if own}
    return {}


def growth(records: Sequence[Record], axis: str, metric: str) -> list[Html]:
    """Return a chart for each of what is held fixed, the fitted exponents in its legend."""
    what, unit, scale = MEASURES[metric]
    drawn = []
    for (place, fixed), found in curves(records, ("scaling", "memory", "step"), axis, metric).items():
        series = []
        for i, curve in enumerate(found):
            points = [(x, y * scale) for x, y in curve.points]
            series.append(Series(curve.legend, points, COLOUR[kind_of(curve.row)], i))
        title = f"{what.capitalize()} against {AXES[axis].split(',')[0]}, at {fixed or 'all else the same'}"
        chart = lines(title, series, AXES[axis], f"{what}, {unit}", log=True)
        drawn.append(figure(chart, title, Case(records[place - 1], place, "", []).under))
    return drawn


def scaling(records: Sequence[Record]) -> Html:
    drawn = [one for axis in AXES for one in growth(records, axis, "seconds")]
    drawn += [one for axis in ("depth", "width") for one in growth(records, axis, "peak_memory_bytes")]
    return section("Scaling", paragraph(EXPONENTS) if drawn else NOTHING, figures(drawn))
