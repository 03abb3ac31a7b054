"""How time and memory grow with depth, batch and width: curves, their exponents, their charts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bench.records.rows import Record, Row
from bench.report.compare import KINDS, Case, kind_of, measured
from bench.report.wording import COLOUR, under
from bench.suite.scaling import exponent, steepest
from fastbn.page.charts import Series, lines
from fastbn.page.page import NOTHING, Html, figure, figures, paragraph, section


@dataclasses.dataclass(frozen=True)
class Curve:
    """A provider's (x, y), sorted by x, everything but x held fixed."""

    provider: str
    kind: str
    points: list[tuple[float, float]]

    def exponent(self) -> float | None:
        """Of y ∝ x^e, by least squares over the logarithms; None under three points, which any curve fits."""
        return exponent(self.points) if len(self.points) > 2 else None

    def steepest(self) -> float:
        """The largest exponent between neighbours: a cliff stands far above the fitted one."""
        return steepest(self.points)


AXES = {"depth": "depth, layers", "batch_size": "batch, images", "width": "width, channels"}


def curves(
    records: Sequence[Record], levels: Sequence[str], axis: str, metric: str
) -> dict[tuple[int, str], list[Curve]]:
    """By (the record's place, what is held fixed), from the first of these levels that has any.

    Where sweeps over other axes cross, a few points lie on a line by chance: those of two are left out if
    there are longer ones."""
    for level in levels:
        points: dict[tuple[int, str], dict[tuple[str, str], dict[float, float]]] = {}
        for place, record in enumerate(records, 1):
            for row in record.rows:
                x, y = getattr(row, axis), getattr(row, metric)
                if row.level == level and measured(row) and x and y:
                    points.setdefault((place, _fixed(row, axis)), {}).setdefault(
                        (_named(row), kind_of(row)), {}
                    )[x] = y
        found = {}
        longest = max(
            (len(by_x) for by_provider in points.values() for by_x in by_provider.values()), default=0
        )
        for key, by_provider in points.items():
            own = [
                Curve(*who, sorted(by_x.items()))
                for who, by_x in by_provider.items()
                if len(by_x) >= min(longest, 3)
            ]
            if own and longest > 1:
                found[key] = sorted(own, key=lambda curve: KINDS.index(curve.kind))
        if found:
            return found
    return {}


def _named(row: Row) -> str:
    return (
        row.provider
        if row.precision == "fp32" or row.precision in row.provider
        else f"{row.provider}, {row.precision}"
    )


def _fixed(row: Row, axis: str) -> str:
    parts = {
        "family": f"{row.family} family" if row.family else None,
        "depth": f"depth {row.depth}" if row.depth else None,
        "width": f"width {row.width}" if row.width else None,
        "size": f"{row.size}×{row.size}" if row.size else None,
        "batch_size": f"batch {row.batch_size}" if row.batch_size else None,
    }
    return ", ".join(part for name, part in parts.items() if part and name != axis)


EXPONENTS = (
    "A legend's exponent is fitted to all points by least squares; after ≤ stands the steepest "
    "between neighbours. 1 is linear."
)
MEASURES = {
    "seconds": ("time", "ms", 1e3),
    "peak_memory_bytes": ("peak memory", "MB", 1e-6),
    "saved_bytes": ("saved for the backward", "MB", 1e-6),
}


def growth(records: Sequence[Record], axis: str, metric: str) -> list[Html]:
    """A chart each for what is held fixed, the fitted exponents in its legend."""
    what, unit, scale = MEASURES[metric]
    drawn = []
    for (place, fixed), found in curves(records, ("scaling", "memory", "step"), axis, metric).items():
        series = []
        for i, curve in enumerate(found):
            points = [(x, y * scale) for x, y in curve.points]
            series.append(Series(f"{curve.provider}{_grows(curve)}", points, COLOUR[curve.kind], i))
        case = Case(records[place - 1], place, "", [])
        title = f"{what.capitalize()} against {AXES[axis].split(',')[0]}, at {fixed or 'all else the same'}"
        drawn.append(
            figure(lines(title, series, AXES[axis], f"{what}, {unit}", log=True), title, under(case))
        )
    return drawn


def _grows(curve: Curve) -> str:
    exponent = curve.exponent()
    return f" ∝ x^{exponent:.2f} (≤ {curve.steepest():.2f})" if exponent is not None else ""


def scaling(records: Sequence[Record]) -> Html:
    drawn = [one for axis in AXES for one in growth(records, axis, "seconds")]
    drawn += [one for axis in ("depth", "width") for one in growth(records, axis, "peak_memory_bytes")]
    return section("Scaling", paragraph(EXPONENTS) if drawn else NOTHING, figures(drawn))
