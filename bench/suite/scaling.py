"""How time and memory grow: exponents fitted to the rows of a curve, and its steepest part."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.records.rows import Row

AXES = ("depth", "batch_size", "width")
LEAST = 3  # points of a curve


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Of y ∝ x^e, by least squares over the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope


def steepest(points: Sequence[tuple[float, float]]) -> float:
    """The largest exponent between neighbours: a cliff stands far above the fitted one."""
    return max(math.log(d / b) / math.log(c / a) for (a, b), (c, d) in itertools.pairwise(points))


@dataclass(frozen=True)
class Curve:
    """`value` of one provider along one axis, everything else being equal: value ∝ axis^exponent."""

    axis: str
    value: str  # a field of Row: "seconds", "saved_bytes", "peak_memory_bytes"
    provider: str
    points: tuple[tuple[int, float], ...]

    @property
    def exponent(self) -> float:
        return exponent(self.points)

    @property
    def steepest(self) -> float:
        return steepest(self.points)

    def __str__(self) -> str:
        axis, first, last = self.axis.replace("_size", ""), self.points[0][0], self.points[-1][0]
        return (
            f"{self.provider}: {self.value} ∝ {axis}^{self.exponent:.2f} from {first} to {last}, at the "
            f"steepest {self.steepest:.2f}"
        )


def curves(
    rows: Iterable[Row], values: tuple[str, ...] = ("seconds", "saved_bytes", "peak_memory_bytes")
) -> list[Curve]:
    """Every curve of at least three points among these rows of the scaling level."""
    scaling = [row for row in rows if row.level == "scaling" and not row.failed]
    found = []
    for axis, value in itertools.product(AXES, values):
        groups: dict[tuple[object, ...], dict[int, float]] = {}
        for row in scaling:
            if getattr(row, value):
                held = tuple(
                    getattr(row, other) for other in (*AXES, "size", "family", "precision") if other != axis
                )
                groups.setdefault((row.provider, *held), {})[getattr(row, axis)] = getattr(row, value)
        found += [
            Curve(axis, value, str(key[0]), tuple(sorted(own.items())))
            for key, own in groups.items()
            if len(own) >= LEAST
        ]
    return found
