"""The growth of time and memory: exponents fitted to the rows of a curve, and its steepest part."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from bench.records.rows import Row

AXES = ("depth", "batch_size", "width")
VALUES = ("seconds", "saved_bytes", "peak_memory_bytes")
LEAST = 3  # points that an exponent is fitted to: any curve fits two


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

    def __str__(self) -> str:
        axis, first, last = self.axis.replace("_size", ""), self.points[0][0], self.points[-1][0]
        grows = f"{self.value} ∝ {axis}^{self.exponent:.2f} from {first} to {last}"
        return f"{self.row.provider}: {grows}, at the steepest {self.steepest:.2f}"


def curves(rows: Iterable[Row], axis: str, value: str) -> list[Curve]:
    """Return every line of these rows along an axis, however short; failed rows are left out."""
    groups: dict[tuple[object, ...], tuple[Row, dict[float, float]]] = {}
    for row in rows:
        x, y = getattr(row, axis), getattr(row, value)
        if row.failed is None and x and y:
            held = tuple(getattr(row, name) for name in (*AXES, "size", "family") if name != axis)
            _, points = groups.setdefault((row.provider, row.trains, row.precision, *held), (row, {}))
            points[x] = y
    return [Curve(axis, value, row, tuple(sorted(points.items()))) for row, points in groups.values()]


def fitted(rows: Iterable[Row]) -> list[Curve]:
    """Return every curve of the scaling level that an exponent can be fitted to."""
    scaling = [row for row in rows if row.level == "scaling"]
    along = (curves(scaling, axis, value) for axis in AXES for value in VALUES)
    return [curve for own in along for curve in own if len(curve.points) >= LEAST]
