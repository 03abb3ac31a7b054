"""Turn numbers into places and words of a chart: scales, their round ticks, figures of three
digits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Scale:
    """A map of data between low and high to units between start and end; linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        of = math.log if self.log else float
        return self.start + (of(value) - of(self.low)) / (of(self.high) - of(self.low)) * (
            self.end - self.start
        )

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers within it, `most` at most and two at least, if there are."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps, every in (
                ((1, 2, 5), 1),
                ((1, 3), 1),
                *(((1,), every) for every in range(1, len(decades) + 1)),
            ):
                marks = [
                    m * 10.0**d
                    for d in decades
                    if d % every == 0
                    for m in steps
                    if self.low <= m * 10.0**d <= self.high
                ]
                if 2 <= len(marks) <= most:
                    return marks
        span = self.high - self.low
        size = 10.0 ** math.floor(math.log10(span / most))
        step = next(m * size for m in (1, 2, 5, 10, 20) if span / (m * size) <= most)
        return [
            i * step
            for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)
        ]


def number(value: float) -> str:
    """Return a number in three significant digits, without an exponent where that is short: 0.0123, 1.23,
    1,230, 1.2e-07."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if not 1e-4 <= abs(value) < 1e9:
        return f"{value:.2g}"
    rounded = float(f"{value:.3g}")  # 9.996 has one digit before the point, 10.0 two
    return f"{rounded:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def short(value: float) -> str:
    """Return a number as an axis labels it: whole ones with separators, others in four digits."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e7 else f"{value:.4g}"


def domain(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Return what an axis spans to show these, in order: a quarter more on either side of a logarithm, else
    from 0 on."""
    low, high = values[0], values[-1]
    if log:
        return low / 1.25, high * 1.25
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high + (high - low) / 20) if high > low else (low, low + 1.0)
