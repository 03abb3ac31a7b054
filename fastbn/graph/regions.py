"""The graph is what an engine runs, as plain data read off a model. It holds names and numbers, no tensors.

A region is a chain of joins. A join makes one activation from one or two convolutions, each followed by its
BatchNorm:

    z = function( scale·y + shift  [+ rscale·y_r + rshift | + residual] )        y = conv(source), raw

Either half of a convolution and its BatchNorm may be absent. A BatchNorm that reads no convolution's raw
output (before an activation and a convolution, as in pre-activation networks) reads its source through the
convolution that copies it; a convolution that no BatchNorm reads has one that changes nothing.

Values are numbered: a region's inputs first, then each join's z in the order in which they are made.
"""

from __future__ import annotations

import dataclasses
import functools

from fastbn.graph.activations import IDENTITY, Function

Shape = tuple[int, int, int, int]  # (N, C, H, W)
Pair = tuple[int, int]


class Unfit(Exception):
    """These inputs are outside what a region can run (a broadcast addition, say); stock decides what they
    mean."""


@dataclasses.dataclass(frozen=True, eq=False)
class Conv:
    """A convolution with a frozen weight, and the BatchNorm that reads it. Each is itself alone: it may
    key a dictionary."""

    name: str  # "layer1.0.conv1"
    norm: str  # "layer1.0.bn1"
    source: int  # the value that it reads
    in_channels: int
    channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    slot: int  # where its channels begin in the region's flat vectors
    copies: bool = False  # it only stands before a BatchNorm that reads no convolution
    bare: bool = False  # no BatchNorm reads it

    def shape(self, source: Shape) -> Shape:
        """Return the output's shape for an input of this one, both (N, C, H, W). Raises Unfit where there is
        none."""
        n, c, *size = source
        out = [
            (extent + 2 * p - d * (k - 1) - 1) // s + 1
            for extent, p, d, k, s in zip(
                size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        if c != self.in_channels or min(out) < 1 or n < 1:
            raise Unfit(f"{self.name} cannot read an input of shape {source}")
        return n, self.channels, out[0], out[1]

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Return the weight's shape, (C_out, C_in / groups, KH, KW)."""
        return self.channels, self.in_channels // self.groups, *self.kernel

    @property
    def span(self) -> slice:
        """Return its channels' place in the region's flat vectors."""
        return slice(self.slot, self.slot + self.channels)


@dataclasses.dataclass(frozen=True)
class Join:
    """An activation z, made of one convolution, or of two (a projection block), or of one and a residual
    value."""

    value: int
    convs: tuple[Conv, ...]
    residual: int | None
    function: Function

    @property
    def needs_mask(self) -> bool:
        """Return whether its function follows an addition, so that what the derivative needs cannot be
        recomputed from one raw output."""
        return self.function != IDENTITY and (self.residual is not None or len(self.convs) > 1)

    @property
    def linear(self) -> bool:
        """Return whether its gradient goes through it as it is, so that nothing is saved: convolutions
        without BatchNorm, no function."""
        return self.function == IDENTITY and all(conv.bare for conv in self.convs)

    @property
    def sources(self) -> tuple[int, ...]:
        """Return every value that it reads, the residual last."""
        residual = () if self.residual is None else (self.residual,)
        return (*(conv.source for conv in self.convs), *residual)


@dataclasses.dataclass(frozen=True)
class Region:
    """A maximal set of joins that runs as one function."""

    inputs: int  # how many values come from outside: they are numbered 0 … inputs−1
    joins: tuple[Join, ...]
    outputs: tuple[int, ...]  # the values handed outside

    @functools.cached_property
    def convs(self) -> tuple[Conv, ...]:
        """Return the convolutions of all joins, in order."""
        return tuple(conv for join in self.joins for conv in join.convs)

    @functools.cached_property
    def channels(self) -> int:
        """Return the length of the region's flat vectors: the channels of all BatchNorms."""
        return sum(conv.channels for conv in self.convs)

    def uses(self) -> dict[int, int]:
        """Return how often each value is read. Being handed outside counts as one reading."""
        counts = dict.fromkeys(range(self.inputs + len(self.joins)), 0)
        for join in self.joins:
            for value in join.sources:
                counts[value] += 1
        for value in self.outputs:
            counts[value] += 1
        return counts

    def shapes(self, inputs: tuple[Shape, ...]) -> dict[int, Shape]:
        """Return every value's shape, from the inputs'. A join's z and its raw outputs share one; raises
        Unfit where they don't."""
        shapes = dict(enumerate(inputs))
        for join in self.joins:
            sizes = {conv.shape(shapes[conv.source]) for conv in join.convs}
            if join.residual is not None:
                sizes.add(shapes[join.residual])
            if len(sizes) > 1:
                raise Unfit(
                    f"the addition after {join.convs[0].norm} broadcasts "
                    f"{' and '.join(map(str, sorted(sizes)))}"
                )
            shapes[join.value] = sizes.pop()
        return shapes


@dataclasses.dataclass(frozen=True)
class Graph:
    """A network as the engine sees it: what runs fused, and what runs stock and why."""

    regions: tuple[Region, ...]
    stock: tuple[tuple[str, str], ...]  # (what, why)
