"""Where buffers of known lifetimes lie, so that a step takes as little memory as may be.

What a forward saves lies densely in memory that is lent until its backward has run, in the order in which the
backward lets go of it: what is in use of it, at any time, is its front, up to a height that rises in the
forward and falls in the backward. Everything else lies beyond that height, and what finds no room there in
scratch memory, which is lent for the one pass. Larger ones are placed first, each in the first gap that fits
it (greedy by size: Pisarchyk, Lee 2020)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

LINE = 64  # bytes: no two buffers share a cache line


@dataclasses.dataclass(eq=False)
class Span:
    """Bytes that are in use from the `first` to the `last` call, and where they lie."""

    bytes: int
    first: int
    last: int
    kept: bool = False  # in the memory that lasts from the forward to the backward, else in scratch memory
    offset: int = 0

    def __post_init__(self) -> None:
        self.bytes = -(-self.bytes // LINE) * LINE

    @property
    def end(self) -> int:
        return self.offset + self.bytes


def lay_out(saved: list[Span], others: list[Span], calls: int) -> int:
    """Gives each span its place; the bytes of kept memory."""
    kept = 0
    for span in sorted(saved, key=lambda span: (-span.last, span.first)):
        span.kept, span.offset = True, kept
        kept += span.bytes
    height = _heights(saved, calls)
    placed: list[list[Span]] = [[] for _ in range(calls)]  # by call
    for span in sorted(others, key=lambda span: (-span.bytes, span.first)):
        uses = range(span.first, span.last + 1)
        beside = {other: None for call in uses for other in placed[call]}
        span.offset = _gap(
            span.bytes, max(height[call] for call in uses), [other for other in beside if other.kept]
        )
        span.kept = span.end <= kept
        if not span.kept:
            span.offset = _gap(span.bytes, 0, [other for other in beside if not other.kept])
        for call in uses:
            placed[call].append(span)
    return kept


def scratch_bytes(spans: Iterable[Span], calls: range) -> int:
    """Return the scratch memory that these calls need."""
    return max(
        (
            span.end
            for span in spans
            if not span.kept and span.first < calls.stop and span.last >= calls.start
        ),
        default=0,
    )


def _heights(saved: list[Span], calls: int) -> list[int]:
    """Return, by call, how far kept memory is in use: no further than what was born by then, or dies from
    then on."""
    born, dying = [0] * calls, [0] * calls
    for span in saved:
        born[span.first] = max(born[span.first], span.end)
        dying[span.last] = max(dying[span.last], span.end)
    alive = list(itertools.accumulate(reversed(dying), max))[::-1]
    return list(map(min, itertools.accumulate(born, max), alive))


def _gap(size: int, start: int, others: list[Span]) -> int:
    """Return the first place from `start` on where `size` bytes lie between the others."""
    for other in sorted(others, key=lambda span: span.offset):
        if other.offset - start >= size:
            break
        start = max(start, other.end)
    return start
