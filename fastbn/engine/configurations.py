"""Which kernel carries a convolution out on a GPU, and how it is cut into programs: static choices by shape and compute capability,
from a table that `python -m bench.tune` measured, and by rules read off machine code (`python -m bench.audit`) where it has no row; never
measured during a run. Two things are in the table alone, and off where it does not say: whether kernels begin before the one before them
has ended (kernels/dependent.py), which no count can judge, and packed arithmetic (kernels/source.py), which costs precision.

What the choices keep to: as few instructions a pixel as go without spilled registers, in the shared memory that there is. A band of four
rows forms each input row 1½ times and one of two rows twice, but the latter takes fewer registers and makes twice as many programs,
of which small images have too few.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import torch

from fastbn.engine.graph import Conv
from fastbn.kernels.conv import Tile
from fastbn.kernels.conv_rolling import Roll, pairing

TABLE = Path(__file__).with_name("configurations.json")
ROLLING, TAPS, LIBRARY = "rolling rows", "tap by tap", "the library's, BatchNorm in passes beside it"
DEPENDENT = 90  # the capability from which kernels can
MANY = 128  # channels from which a 3×3 convolution is arithmetic rather than traffic, and cuDNN's is the better one


def algorithm(conv: Conv) -> str:
    """The name of the kernel for a convolution."""
    if conv.groups != 1:
        return LIBRARY
    same = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.kernel == (3, 3) and conv.in_channels == conv.channels
    if same and conv.channels in (16, 32, 64):
        return ROLLING
    if conv.kernel != (1, 1) and min(conv.in_channels, conv.channels) >= MANY:
        return LIBRARY
    return TAPS


def capability(device: torch.device) -> int:
    """90 for a Hopper GPU; 0 for the interpreter on a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def tile(read: int, written: int, dtype: torch.dtype, device: int) -> Tile:
    """How a kernel that takes any shape is cut, by the channels that it reads and writes."""
    wide = dtype == torch.float32
    block_k = 32 if wide or read < 16 else _power_of_two(read, 16, 64)
    block_n = _power_of_two(written, 16, 32 if device == 0 else 64)
    pixels = 32 if device == 0 else 128 if device in WIDE_UNITS and not wide else 64
    return Tile(pixels, block_n, block_k, 4, 1 if device == 0 else 3)


@dataclasses.dataclass(frozen=True)
class Key:
    """What a rolling kernel's configuration hangs on."""

    capability: int  # 90 for a Hopper GPU; 0 for the interpreter
    backward: bool
    channels: int
    size: int  # of the images: their width
    wide: bool  # float32 storage


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a rolling kernel is cut."""

    row: int  # products of a row of a program
    rows: int  # of its band
    warps: int
    keep: bool  # the weights in shared memory from the start


def read(what: str = "rows") -> list[dict[str, Any]]:
    """The shipped rows, as `python -m bench.tune --engine triton` measured them; none of a device that it has not run on.
    what: "rows", one a rolling kernel and shape; "launches", one a capability."""
    rows: list[dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))[what]
    return rows


@functools.cache
def dependent(device: int) -> bool:
    """Whether this capability's kernels are launched to begin before the one before them has ended."""
    return device >= DEPENDENT and any(row["dependent"] for row in read("launches") if row["capability"] == device)


@functools.cache
def packed(device: int) -> bool:
    """Whether this capability's rolling kernels form fp16 in fp16."""
    return any(row["packed"] for row in read("launches") if row["capability"] == device)


@functools.cache
def table() -> dict[Key, Choice]:
    """What was measured."""
    fields = [[field.name for field in dataclasses.fields(kind)] for kind in (Key, Choice)]
    return {Key(**{k: row[k] for k in fields[0]}): Choice(**{k: row[k] for k in fields[1]}) for row in read()}


def roll(conv: Conv, size: tuple[int, int], dtype: torch.dtype, device: int, backward: bool) -> Roll:
    """How a rolling kernel is cut, for images of this (height, width): as was measured, else by rule."""
    height, width = size
    key = Key(device, backward, conv.channels, width, dtype == torch.float32)
    choice = table().get(key) or rule(key)
    across = -(-width // pairing(conv.channels))
    whole = min(choice.row, across & -across)  # the largest power of two that divides it: no program has an empty place, nor needs a mask
    strip = whole if whole >= 8 else min(across, choice.row)
    return Roll(max(1, choice.row // strip), min(choice.rows, height), strip, choice.warps, choice.keep, packed(device))


def rule(key: Key) -> Choice:
    """What the instruction counts say, where nothing was measured."""
    row, rows = _row_and_rows(key.channels, key.wide, key.capability, key.backward)
    warps, keep = 4, key.capability != 0 or key.channels != 64  # the interpreter runs both kinds
    if key.wide and key.channels > 16 and key.capability != 0:
        warps = 4 if key.channels == 64 and key.capability in WIDE_UNITS else 8
        keep = key.capability in WIDE_UNITS and (key.backward or key.channels == 32)  # the others' shared memory does not hold the weights
    return Choice(row, rows, warps, keep)


WIDE_UNITS = (90, 100)  # whose matrix units multiply 64 rows from shared memory; the others' read 16 from registers


def _row_and_rows(channels: int, wide: bool, device: int, backward: bool) -> tuple[int, int]:
    """Products of a row of a program, and rows of its band."""
    if device == 0:
        return 16, 4
    if device in WIDE_UNITS:
        return 64, 4 if channels == 16 and not (device == 100 and backward) else 2
    if channels == 16:
        return (64, 2) if wide else (32, 4) if backward else (64, 4)
    return (16 if wide and channels == 32 and backward else 32), 2  # of 32 such products two BatchNorms spill 72 bytes a thread


def _power_of_two(n: int, least: int, most: int) -> int:
    """The smallest power of two from n on, within bounds."""
    return min(most, max(least, 1 << (n - 1).bit_length()))
