"""What the project asks of a step on one H100 or H200, and what was measured of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = list[dict[str, Any]]


def _best(rows: Rows, key: str = "ms_median", **wanted: str | tuple[str, ...]) -> float | None:
    """The least of the rows that have what is wanted; None where none was measured."""
    found = [
        row[key]
        for row in rows
        if row.get(key) is not None
        and all(row[name] in ((v,) if isinstance(v, str) else v) for name, v in wanted.items())
    ]
    return min(found) if found else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def _fit(rows: Rows) -> float | None:
    return _best(rows, who="fastbn", way="fit")


def _over_fit(**peer: str | tuple[str, ...]) -> Callable[[Rows], float | None]:
    return lambda rows: _ratio(_best(rows, who="stock", **peer), _fit(rows))


def _memory(rows: Rows) -> float | None:
    """fit's peak over the least of stock's, everything trained, eager."""
    peak = "peak_memory_bytes"
    return _ratio(
        _best(rows, peak, who="fastbn", way="fit"), _best(rows, peak, who="stock", train="all", way="eager")
    )


def _an_image(batch: int) -> Callable[[Rows], float | None]:
    return lambda rows: _ratio(_fit(rows), batch / 1e3)


AMP = ("fp16", "bf16")
# what, "at most" or "at least", the figure, how it is measured
Bar = tuple[str, str, float, Callable[[Rows], float | None]]
BARS: dict[str, list[Bar]] = {
    "866x128": [
        ("fit's step, ms", "at most", 8.0, _fit),
        (
            "best eager AMP, everything trained, over fit",
            "at least",
            5.0,
            _over_fit(train="all", way="eager", precision=AMP),
        ),
        (
            "best graphed or compiled, everything trained, over fit",
            "at least",
            2.0,
            _over_fit(train="all", way=("graph", "compiled")),
        ),
        (
            "best stock eager over the drop-in",
            "at least",
            2.5,
            lambda rows: _ratio(
                _best(rows, who="stock", way="eager"), _best(rows, who="fastbn", way="eager")
            ),
        ),
        ("fit's peak memory over stock's", "at most", 0.55, _memory),
    ],
    "866x1024": [
        ("fit, µs an image", "at most", 58.0, _an_image(1024)),
        ("best stock, everything trained, over fit", "at least", 2.0, _over_fit(train="all")),
        ("best stock, BN only, over fit", "at least", 1.7, _over_fit(train="bn")),
        ("fit's peak memory over stock's", "at most", 0.55, _memory),
    ],
    "50x256": [
        ("ResNet-50: best stock, everything trained, over fit", "at least", 1.6, _over_fit(train="all"))
    ],
}


def bars(setting: str, rows: Rows) -> list[dict[str, Any]]:
    """A row a bar: what is asked, what was measured, and whether it is met (None: not measured)."""
    found = []
    for what, side, figure, measure in BARS.get(setting, []):
        measured = measure(rows)
        met = None if measured is None else measured <= figure if side == "at most" else measured >= figure
        found.append(
            {"setting": setting, "bar": what, "asked": f"{side} {figure:g}", "measured": measured, "met": met}
        )
    return found


def line(bar: dict[str, Any]) -> str:
    verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
    measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
    return f"{bar['setting']:10}{bar['bar']:58}{bar['asked']:16}{measured:>9}  {verdict}"
