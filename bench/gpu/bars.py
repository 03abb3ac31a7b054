"""The project's bars for a step on one H100 or H200, and what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from bench.records.rows import Row

Rows = Sequence[Row]
Figure = Callable[[Rows], float | None]
AMP = ("amp-fp16", "amp-bf16")


def _best(rows: Rows, who: str, key: str = "seconds", **wanted: str | tuple[str, ...]) -> float | None:
    """Return the least of the rows of fastbn or stock that have what is wanted; None where none was
    measured."""
    found = [
        getattr(row, key)
        for row in rows
        if row.provider.startswith(who) and row.seconds and getattr(row, key) is not None
        if all(_of(row, name) in ((v,) if isinstance(v, str) else v) for name, v in wanted.items())
    ]
    return min(found) if found else None


def _of(row: Row, name: str) -> Any:
    return getattr(row, name) if hasattr(row, name) else (row.more or {}).get(name)


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _fit(rows: Rows) -> float | None:
    return _best(rows, "fastbn", way="fit")


def _over_fit(**peer: str | tuple[str, ...]) -> Figure:
    return lambda rows: _ratio(_best(rows, "stock", **peer), _fit(rows))


def _drop_in(rows: Rows) -> float | None:
    return _ratio(_best(rows, "stock", way="eager"), _best(rows, "fastbn", way="eager"))


def _memory(rows: Rows) -> float | None:
    """Return fit's peak over the least of stock's, everything trained, eager."""
    peak = "peak_memory_bytes"
    return _ratio(
        _best(rows, "fastbn", peak, way="fit"), _best(rows, "stock", peak, trains="all", way="eager")
    )


def _in(unit: float) -> Figure:
    """Return fit's step in units of so many seconds."""
    return lambda rows: _ratio(_fit(rows), unit)


EAGER_AMP = _over_fit(trains="all", way="eager", precision=AMP)
AT_BEST = _over_fit(trains="all", way=("graph", "compiled"))
# what, "at most" or "at least", the figure, how it is measured
BARS: dict[str, list[tuple[str, str, float, Figure]]] = {
    "866x128": [
        ("fit's step, ms", "at most", 8.0, _in(1e-3)),
        ("best eager AMP, everything trained, over fit", "at least", 5.0, EAGER_AMP),
        ("best graphed or compiled, everything trained, over fit", "at least", 2.0, AT_BEST),
        ("best stock eager over the drop-in", "at least", 2.5, _drop_in),
        ("fit's peak memory over stock's", "at most", 0.55, _memory),
    ],
    "866x1024": [
        ("fit, µs an image", "at most", 58.0, _in(1024e-6)),
        ("best stock, everything trained, over fit", "at least", 2.0, _over_fit(trains="all")),
        ("best stock, BN only, over fit", "at least", 1.7, _over_fit(trains="bn")),
        ("fit's peak memory over stock's", "at most", 0.55, _memory),
    ],
    "50x256": [
        ("ResNet-50: best stock, everything trained, over fit", "at least", 1.6, _over_fit(trains="all"))
    ],
}


def bars(setting: str, rows: Rows) -> list[dict[str, Any]]:
    """Return a row per bar: what is asked, what was measured, and whether it is met (None: not measured)."""
    found = []
    for what, side, figure, measure in BARS.get(setting, []):
        measured = measure(rows)
        met = None if measured is None else measured <= figure if side == "at most" else measured >= figure
        asked = {"setting": setting, "bar": what, "asked": f"{side} {figure:g}"}
        found.append(asked | {"measured": measured, "met": met})
    return found


def line(bar: dict[str, Any]) -> str:
    """Return a bar as a line of the table."""
    verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
    measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
    return f"{bar['setting']:10}{bar['bar']:58}{bar['asked']:16}{measured:>9}  {verdict}"
