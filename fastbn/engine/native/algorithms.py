"""Which algorithm carries a convolution out on a CPU: by its shape, from a table that `python -m bench.tune`
measured. Never by a measurement during a run."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

from fastbn.graph.regions import Conv

TABLE = Path(__file__).with_name("algorithms.json")
NAMES = {0: "direct", 2: "Winograd F(2×2, 3×3)", 4: "Winograd F(4×4, 3×3)"}


@dataclasses.dataclass(frozen=True)
class AlgorithmRow:
    """From this many channels on, to the next row: M of Winograd's F(M×M, 3×3), or 0 for the direct sum."""

    channels: int
    M: int


@functools.cache
def table() -> tuple[AlgorithmRow, ...]:
    """The shipped rows, by rising channels."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))["rows"]
    return tuple(AlgorithmRow(row["channels"], row["M"]) for row in rows)


def can_transform(conv: Conv) -> bool:
    """Whether Winograd applies at all: 3×3, stride 1, padded by one, of one group."""
    return (
        conv.groups == 1 and conv.kernel == (3, 3) and conv.stride == conv.dilation == conv.padding == (1, 1)
    )


def algorithm(conv: Conv, exact: bool, size: tuple[int, int] | None = None) -> int:
    """M of F(M×M, 3×3), or 0 for the direct sum; always 0 where results are to be exact to float32's last
    bits.

    The fewer channels decide what is fast, the more what is exact: M is the smaller of the two rows'. Images
    of a `size` (height, width) that its tiles hang far over take a smaller one, or the direct sum, if that
    makes fewer products."""
    if exact or not can_transform(conv):
        return 0
    most = min(_row(conv.in_channels), _row(conv.channels))
    return most if size is None else min((M for M in NAMES if most >= M), key=lambda M: products(M, size))


def products(M: int, size: tuple[int, int]) -> int:
    """A channel of an image's, by F(M×M, 3×3)."""
    height, width = size
    return -(-height // M) * -(-width // M) * (M + 2) ** 2 if M else 9 * height * width


def _row(channels: int) -> int:
    return next((row.M for row in reversed(table()) if row.channels <= channels), 0)
