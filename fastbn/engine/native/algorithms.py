"""Which algorithm runs a convolution on a CPU: by its shape, from a table that `python -m bench.tune`
measured for the instruction set that the kernels were built for, and by what its weights would occupy. Never
by a measurement during a run."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path

from fastbn.engine.algorithm import Algorithm
from fastbn.graph.regions import Conv, Shape

TABLE = Path(__file__).with_name("algorithms.json")
RAW = -1  # the direct sum by the weight as the model holds it
RAW_CHANNELS_LAST = -2  # the same, of a weight in channels-last order
WINOGRAD = (0, 2, 4)
# the kernels' numbers: M of Winograd's F(M×M, 3×3), or 0, of packed weights; RAW − 2·M of weights as they are
NAMES = {
    **dict(zip(WINOGRAD, (Algorithm.DIRECT, Algorithm.WINOGRAD_2, Algorithm.WINOGRAD_4), strict=True)),
    RAW: Algorithm.RAW,
    RAW - 4: Algorithm.WINOGRAD_2_RAW,
    RAW - 8: Algorithm.WINOGRAD_4_RAW,
}
SETS = ("avx512", "avx2")  # measured ones; others take the last one's table, whose vectors are nearest
FEWEST = 8  # channels: of fewer, a vector is mostly filled up
LEAST_BATCH = 8  # the rule on memory holds from this batch on
ROOM = 8 << 20  # bytes of packed weights that a region may have in any case
FEW_BYTES = 32 << 20  # up to here they are small beside what any process of PyTorch holds


@dataclasses.dataclass(frozen=True)
class AlgorithmRow:
    """The choice for so many channels in images so many pixels high: M of Winograd's F(M×M, 3×3), or 0 for
    the direct sum, the fastest of packed weights and of unpacked ones; and whether packing makes it
    faster."""

    channels: int
    size: int
    M: int
    unpacked: int
    pack: bool


@functools.cache
def table(instructions: str) -> tuple[AlgorithmRow, ...]:
    """Return the shipped rows of an instruction set."""
    tables = json.loads(TABLE.read_text(encoding="utf-8"))
    rows = tables[instructions if instructions in tables else SETS[-1]]["rows"]
    fields = [field.name for field in dataclasses.fields(AlgorithmRow)]
    return tuple(AlgorithmRow(**{name: row[name] for name in fields}) for row in rows)


def can_transform(conv: Conv) -> bool:
    """Return whether Winograd applies at all: 3×3, stride 1, padded by one, of one group."""
    return (
        conv.groups == 1 and conv.kernel == (3, 3) and conv.stride == conv.dilation == conv.padding == (1, 1)
    )


def algorithm(
    conv: Conv, exact: bool, size: tuple[int, int] | None = None, instructions: str = SETS[0]
) -> int:
    """M of F(M×M, 3×3), or 0 for the direct sum; always 0 where results are to be exact to float32's last
    bits.

    The nearest measured shape decides, for the input's channels and for the output's: the smaller M of the
    two. Images of a `size` (height, width) that its tiles extend far beyond take a smaller one, or the direct
    sum, if that makes fewer products."""
    if exact or not can_transform(conv) or min(conv.in_channels, conv.channels) < FEWEST:
        return 0
    most = min(row.M for row in _rows(conv, size, instructions))
    if size is None:
        return most
    return min((M for M in WINOGRAD if most >= M), key=lambda M: (products(M, size), M == 0))


def unpacked(conv: Conv, exact: bool, size: tuple[int, int], instructions: str) -> int:
    """Return the same for a weight as the model holds it: RAW − 2·M."""
    if exact or not can_transform(conv) or min(conv.in_channels, conv.channels) < FEWEST:
        return RAW
    most = min(row.unpacked for row in _rows(conv, size, instructions))
    alone = max(size) <= 2  # a tile alone in its image takes nine products
    return RAW - 2 * min(
        (M for M in WINOGRAD if most >= M), key=lambda M: 9 if alone and M == 2 else products(M, size)
    )


def choices(
    convs: Sequence[Conv], shapes: dict[int, Shape], exact: bool, instructions: str
) -> tuple[int, ...]:
    """Return the algorithm of each convolution of a region, within the memory that its packed weights may
    take.

    Packed and transformed weights are copies: at small batches they can outweigh all activations. A region's
    may take 0.4 W + 1.2 Y bytes, W its weights and Y its raw outputs at this batch, but from FEW_BYTES on no
    more than 0.9 Y: stock's step holds some 2 to 2.3 Y at its peak and the engine's 1.5 to 2.1 Y beside the
    copies, so that it stays within 1.3 times the stock step's peak. ROOM is free in any case.
    Where pixels are many for each weight it is spent first; what does not fit, and what packing makes no
    faster, has its weight transformed at every step, or takes the packed direct sum, or the direct sum by the
    weight as it is."""
    bytes_of = {i: 4 * math.prod(conv.weight_shape) for i, conv in enumerate(convs)}
    outputs: float = sum(4 * math.prod(conv.shape(shapes[conv.source])) for conv in convs)
    if convs:
        outputs *= max(LEAST_BATCH / shapes[convs[0].source][0], 1)
    most = max(0.9 * outputs, FEW_BYTES)
    left: float = max(min(0.4 * sum(bytes_of.values()) + 1.2 * outputs, most), ROOM)
    found = [0] * len(convs)
    for i in sorted(bytes_of, key=lambda i: (-math.prod(shapes[convs[i].source][2:]), bytes_of[i])):
        size = shapes[convs[i].source][2:]
        best, raw = (choose(convs[i], exact, size, instructions) for choose in (algorithm, unpacked))
        sizes = {M: 2 * bytes_of[i] * ((M + 2) ** 2 / 9 if M else 1) for M in WINOGRAD if best >= M}
        if raw != RAW:
            packs = all(row.pack for row in _rows(convs[i], size, instructions))
            sizes = {best: sizes[best]} if packs else {}
        found[i] = next((M for M in sorted(sizes, reverse=True) if sizes[M] <= left), raw)
        left -= sizes.get(found[i], 0)
        if found[i] == RAW and convs[i].groups != 1:
            found[i] = 0  # grouped weights are few
    return tuple(found)


def products(M: int, size: tuple[int, int]) -> int:
    """Return the products that a channel of an image takes, by F(M×M, 3×3), or by the direct sum, which
    leaves out taps that fall outside."""
    height, width = size
    return -(-height // M) * -(-width // M) * (M + 2) ** 2 if M else (3 * height - 2) * (3 * width - 2)


def _rows(conv: Conv, size: tuple[int, int] | None, instructions: str) -> list[AlgorithmRow]:
    """Return the rows nearest to a convolution, for the input's channels and for the output's."""
    rows = table(instructions)
    return [_nearest(rows, channels, size) for channels in (conv.in_channels, conv.channels)]


def _nearest(rows: Sequence[AlgorithmRow], channels: int, size: tuple[int, int] | None) -> AlgorithmRow:
    """Return the row of the nearest number of channels, and of the nearest size among those; without a size
    the largest. By ratio."""

    def away(row: AlgorithmRow) -> tuple[float, float]:
        pixels = -row.size if size is None else abs(math.log(row.size**2 / (size[0] * size[1])))
        return abs(math.log(row.channels / channels)), pixels

    return min(rows, key=away)
