"""The choice of the kernel that runs a convolution on a GPU, and of its cut into programs: static choices by
shape and compute capability, as `python -m bench.tune` measured it (tuning_table.py), and where it did not by
rules read off machine code (`python -m bench.audit`); never measured during a run.

What the choices keep to: as few instructions a pixel as go without spilled registers, in the shared memory
that there is. A band of four rows forms each input row 1½ times and one of two rows twice, but the latter
takes fewer registers and makes twice as many programs, of which small images have too few."""

from __future__ import annotations

import torch

from fastbn.engine.algorithm import Algorithm
from fastbn.engine.triton.tuning_table import Choice, Key, TunedLayer, Tuning
from fastbn.graph.regions import Conv
from fastbn.kernels.triton.conv import Tile
from fastbn.kernels.triton.rolling import Roll, pairing

ROLLING, TAPS, LIBRARY = Algorithm.ROLLING, Algorithm.TAPS, Algorithm.LIBRARY
# channels from which a 3×3 convolution is arithmetic rather than traffic, and cuDNN's is the better one
MANY = 128


def layer(conv: Conv, size: tuple[int, int], device: int) -> TunedLayer | None:
    """Return a convolution's key in the table; None where it can have no row."""
    kernel, stride = conv.kernel[0], conv.stride[0]
    square = (
        conv.kernel == (kernel, kernel)
        and conv.stride == (stride, stride)
        and conv.padding == (kernel // 2, kernel // 2)
    )
    if not square or conv.dilation != (1, 1) or conv.groups != 1:
        return None
    return TunedLayer(device, conv.in_channels, conv.channels, kernel, stride, size[1])


def algorithm(conv: Conv, size: tuple[int, int] | None, device: int, tuning: Tuning) -> Algorithm:
    """Return what runs a convolution of images of this (height, width): as was measured, else by
    rule."""
    way = tuning.ways.get(layer(conv, size, device)) if size else None
    return way.algorithm if way else usual(conv)


def usual(conv: Conv) -> Algorithm:
    """Return what does by rule, where nothing was measured."""
    if conv.groups != 1:
        return LIBRARY
    same = (
        conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.kernel == (3, 3)
        and conv.in_channels == conv.channels
    )
    if same and conv.channels in (16, 32, 64):
        return ROLLING
    if conv.kernel != (1, 1) and min(conv.in_channels, conv.channels) >= MANY:
        return LIBRARY
    return TAPS


def tile(
    conv: Conv, size: tuple[int, int], dtype: torch.dtype, device: int, backward: bool, tuning: Tuning
) -> Tile:
    """Return how a kernel tap by tap is cut, for images of this (height, width): as was measured in half
    precision, else by rule."""
    way = tuning.ways.get(layer(conv, size, device)) if dtype != torch.float32 else None
    if way:
        return way.backward if backward else way.forward
    read, written = (conv.channels, conv.in_channels) if backward else (conv.in_channels, conv.channels)
    return cut(read, written, dtype, device)


def cut(read: int, written: int, dtype: torch.dtype, device: int) -> Tile:
    """Return how a kernel that takes any shape is cut by rule, by the channels that it reads and writes."""
    wide = dtype == torch.float32
    block_k = 32 if wide or read < 16 else _power_of_two(read, 16, 64)
    block_n = _power_of_two(written, 16, 32 if device == 0 else 64)
    pixels = 32 if device == 0 else 128 if device in WIDE_UNITS and not wide else 64
    return Tile(pixels, block_n, block_k, 4, 1 if device == 0 else 3)


def roll(
    conv: Conv, size: tuple[int, int], dtype: torch.dtype, device: int, backward: bool, tuning: Tuning
) -> Roll:
    """Return how a rolling kernel is cut, for images of this (height, width): as was measured, else by
    rule."""
    height, width = size
    key = Key(device, backward, conv.channels, width, dtype == torch.float32)
    choice = tuning.rolls.get(key) or rule(key)
    across = -(-width // pairing(conv.channels))
    # the largest power of two that divides it: no program has an empty place, nor needs a mask
    whole = min(choice.row, across & -across)
    strip = whole if whole >= 8 else min(across, choice.row)
    return Roll(
        max(1, choice.row // strip),
        min(choice.rows, height),
        strip,
        choice.warps,
        choice.keep,
    )


def rule(key: Key) -> Choice:
    """Return what the instruction counts say, where nothing was measured."""
    row, rows = _row_and_rows(key.channels, key.wide, key.capability, key.backward)
    warps, keep = 4, key.capability != 0 or key.channels != 64  # the interpreter runs both kinds
    if key.wide and key.channels > 16 and key.capability != 0:
        warps = 4 if key.channels == 64 and key.capability in WIDE_UNITS else 8
        # the others' shared memory does not hold the weights
        keep = key.capability in WIDE_UNITS and (key.backward or key.channels == 32)
    return Choice(row, rows, warps, keep)


# whose matrix units multiply 64 rows from shared memory; the others' read 16 from registers
WIDE_UNITS = (90, 100)


def _row_and_rows(channels: int, wide: bool, device: int, backward: bool) -> tuple[int, int]:
    """Return the products of a row of a program, and the rows of its band."""
    if device == 0:
        return 16, 4
    if device in WIDE_UNITS:
        return 64, 4 if channels == 16 and not (device == 100 and backward) else 2
    if channels == 16:
        return (64, 2) if wide else (32, 4) if backward else (64, 4)
    # of 32 such products two BatchNorms spill 72 bytes a thread
    return (16 if wide and channels == 32 and backward else 32), 2


def _power_of_two(n: int, least: int, most: int) -> int:
    """Return the smallest power of two from n on, within bounds."""
    return min(most, max(least, 1 << (n - 1).bit_length()))
