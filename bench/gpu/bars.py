"""The project's bars for a step on one H100 or H200, and what was measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.records.rows import Row

Least = dict[str, Any]  # whose least figure, by the beginning of their name, and what else their rows have
AMP = ("amp-fp16", "amp-bf16")
FIT: Least = {"who": "fastbn", "way": "fit"}
EVERYTHING: Least = {"who": "stock", "trains": "all"}


class Bar(NamedTuple):
    """What must be reached: `above` over `below`, in seconds or what `key` says."""

    what: str
    side: str  # "at most" or "at least"
    figure: float
    above: Least
    below: Least | float
    key: str = "seconds"


EAGER: Least = EVERYTHING | {"way": "eager"}
EAGER_AMP = EAGER | {"precision": AMP}
MEMORY = Bar("fit's peak memory over stock's", "at most", 0.55, FIT, EAGER, "peak_memory_bytes")
AT_BEST = EVERYTHING | {"way": ("graph", "compiled")}
DROP_IN = {"who": "stock", "way": "eager"}, {"who": "fastbn", "way": "eager"}
BARS = {
    "866x128": [
        Bar("fit's step, ms", "at most", 8.0, FIT, 1e-3),
        Bar("best eager AMP, everything trained, over fit", "at least", 5.0, EAGER_AMP, FIT),
        Bar("best graphed or compiled, everything trained, over fit", "at least", 2.0, AT_BEST, FIT),
        Bar("best stock eager over the drop-in", "at least", 2.5, *DROP_IN),
        MEMORY,
    ],
    "866x1024": [
        Bar("fit, µs an image", "at most", 58.0, FIT, 1024e-6),
        Bar("best stock, everything trained, over fit", "at least", 2.0, EVERYTHING, FIT),
        Bar("best stock, BN only, over fit", "at least", 1.7, {"who": "stock", "trains": "bn"}, FIT),
        MEMORY,
    ],
    "50x256": [Bar("ResNet-50: best stock, everything trained, over fit", "at least", 1.6, EVERYTHING, FIT)],
}


def _least(rows: Sequence[Row], key: str, who: str, **wanted: str | tuple[str, ...]) -> float | None:
    """Return the least of the rows of fastbn or stock that have what is wanted; None where none was
    measured."""
    timed = ((row.more or {}) | row.told() for row in rows if row.provider.startswith(who) and row.seconds)
    any_of = {name: (value,) if isinstance(value, str) else value for name, value in wanted.items()}
    found = (own.get(key) for own in timed if all(own.get(name) in of for name, of in any_of.items()))
    return min((figure for figure in found if figure is not None), default=None)


def bars(setting: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return a row per bar: what is asked, what was measured, and whether it is met (None: not measured)."""
    found = []
    for bar in BARS.get(setting, []):
        above = _least(rows, bar.key, **bar.above)
        below = _least(rows, bar.key, **bar.below) if isinstance(bar.below, dict) else bar.below
        measured = None if above is None or below is None else above / below
        met = None
        if measured is not None:
            met = measured <= bar.figure if bar.side == "at most" else measured >= bar.figure
        asked = {"setting": setting, "bar": bar.what, "asked": f"{bar.side} {bar.figure:g}"}
        found.append(asked | {"measured": measured, "met": met})
    return found


def line(bar: dict[str, Any]) -> str:
    """Return a bar as a line of the table."""
    verdict = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
    measured = "" if bar["measured"] is None else f"{bar['measured']:.3g}"
    return f"{bar['setting']:10}{bar['bar']:58}{bar['asked']:16}{measured:>9}  {verdict}"
