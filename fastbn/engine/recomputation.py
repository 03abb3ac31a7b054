"""Segments: the joins whose raw outputs a backward computes a second time, so that a step fits its memory.

A segment leaves the value that enters it, and a bit an element for the mask of the value that leaves it,
where all of it saved leaves every raw output. While the backward is in a segment, that one's raw outputs are
there too. With segments of equal size memory falls to about twice the square root of the number of blocks;
the work grows by at most one forward's convolutions."""

from __future__ import annotations

import dataclasses
import itertools
import math

from fastbn.graph.regions import Region, Shape


@dataclasses.dataclass(frozen=True)
class Recompute:
    """In bytes of raw outputs: the last `kept` of a region stay saved; what is before them is cut into
    segments of at most `segment` (or of one block, where a block has more)."""

    segment: int
    kept: int = 0


def spans(region: Region, shapes: dict[int, Shape], itemsize: int, policy: Recompute) -> tuple[range, ...]:
    """Return the segments, as ranges of the region's joins, from its first join on; none where everything is
    kept, or where the region can be cut nowhere: a cut is where one value passes, as between the blocks of a
    ResNet."""
    held = raw_bytes(region, shapes, itemsize)
    # bytes of join i and of those behind it
    after = list(itertools.accumulate(reversed(held), initial=0))[::-1]
    places = [i for i in cuts(region) if after[i] <= policy.kept or i == len(held)]
    if not places or places[0] == 0:
        return ()
    end = places[0]
    segments, start, last = [], 0, 0
    for i in [i for i in cuts(region) if 0 < i <= end]:
        if after[start] - after[i] > policy.segment and last > start:
            segments.append(range(start, last))
            start = last
        last = i
    return (*segments, range(start, end))


def cuts(region: Region) -> list[int]:
    """Return the places before a join where one value alone passes; the region's beginning is one if it has
    one input, and its end always."""
    count = len(region.joins)
    last_read = {value: i for i, join in enumerate(region.joins) for value in join.sources}
    passing = [0] * (count + 1)
    for value, last in last_read.items():
        # an input is there before join 0; join i makes a value that i + 1 may read
        first = max(0, value - region.inputs + 1)
        passing[first] += 1
        passing[last + 1] -= 1
    return [i for i, values in enumerate(itertools.accumulate(passing)) if values == 1 or i == count]


def raw_bytes(region: Region, shapes: dict[int, Shape], itemsize: int) -> list[int]:
    """Return, by join, the bytes of its raw outputs."""
    return [len(join.convs) * math.prod(shapes[join.value]) * itemsize for join in region.joins]
