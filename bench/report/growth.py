"""The growth of time and memory with depth, batch and width: curves, their exponents, their charts."""

from __future__ import annotations

from collections.abc import Sequence

from bench.records.rows import Record, Row
from bench.report.compare import KINDS, Case, kind_of
from bench.report.wording import COLOUR, under
from bench.suite import scaling as lines_of
from bench.suite.scaling import LEAST, Curve
from fastbn.page.charts import Series, lines
from fastbn.page.page import NOTHING, Html, figure, figures, paragraph, section

AXES = {"depth": "depth, layers", "batch_size": "batch, images", "width": "width, channels"}


def curves(
    records: Sequence[Record], levels: Sequence[str], axis: str, metric: str
) -> dict[tuple[int, str], list[Curve]]:
    """Return curves by (the record's place, what is held fixed), from the first of these levels that has any.

    Where sweeps over other axes cross, a few points lie on a line by chance: those of two are left out if
    there are longer ones."""
    for level in levels:
        found: dict[tuple[int, str], list[Curve]] = {}
        for place, record in enumerate(records, 1):
            for curve in lines_of.curves((row for row in record.rows if row.level == level), axis, metric):
                found.setdefault((place, _fixed(curve.row, axis)), []).append(curve)
        longest = max((len(curve.points) for own in found.values() for curve in own), default=0)
        if longest > 1:
            long = {
                key: [c for c in own if len(c.points) >= min(longest, LEAST)] for key, own in found.items()
            }
            return {key: sorted(own, key=_kind) for key, own in long.items() if own}
    return {}


def _kind(curve: Curve) -> int:
    return KINDS.index(kind_of(curve.row))


def _named(row: Row) -> str:
    plain = row.precision == "fp32" or row.precision in row.provider
    return row.provider if plain else f"{row.provider}, {row.precision}"


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
    """Return a chart for each of what is held fixed, the fitted exponents in its legend."""
    what, unit, scale = MEASURES[metric]
    drawn = []
    for (place, fixed), found in curves(records, ("scaling", "memory", "step"), axis, metric).items():
        series = []
        for i, curve in enumerate(found):
            points = [(x, y * scale) for x, y in curve.points]
            name = f"{_named(curve.row)}{_grows(curve)}"
            series.append(Series(name, points, COLOUR[kind_of(curve.row)], i))
        case = Case(records[place - 1], place, "", [])
        title = f"{what.capitalize()} against {AXES[axis].split(',')[0]}, at {fixed or 'all else the same'}"
        chart = lines(title, series, AXES[axis], f"{what}, {unit}", log=True)
        drawn.append(figure(chart, title, under(case)))
    return drawn


def _grows(curve: Curve) -> str:
    exponent = curve.exponent
    return f" ∝ x^{exponent:.2f} (≤ {curve.steepest:.2f})" if exponent is not None else ""


def scaling(records: Sequence[Record]) -> Html:
    drawn = [one for axis in AXES for one in growth(records, axis, "seconds")]
    drawn += [one for axis in ("depth", "width") for one in growth(records, axis, "peak_memory_bytes")]
    return section("Scaling", paragraph(EXPONENTS) if drawn else NOTHING, figures(drawn))
