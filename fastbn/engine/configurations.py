"""Which kernel carries a convolution out on a GPU, and how it is cut into programs: static choices by shape and compute capability,
read off the compiler's output (`python -m bench.audit`), never measured during a run."""

from __future__ import annotations

import torch

from fastbn.engine.graph import Conv
from fastbn.kernels.conv import Tile
from fastbn.kernels.conv_rolling import Roll, pairing

ROLLING, TAPS, LIBRARY = "rolling rows", "tap by tap", "the library's, BatchNorm in passes beside it"
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
    return Tile(32 if device == 0 else 64 if wide else 128, block_n, block_k, 4, 1 if device == 0 else 3)


def roll(conv: Conv, size: tuple[int, int], dtype: torch.dtype, device: int, backward: bool) -> Roll:
    """How a rolling kernel is cut, for images of this (height, width)."""
    height, width = size
    across = -(-width // pairing(conv.channels))
    most = 16 if device == 0 else 64
    strip = min(across, most)
    warps = 8 if conv.channels == 32 and backward else 4
    return Roll(max(1, most // strip), min(4, height), strip, warps)


def _power_of_two(n: int, least: int, most: int) -> int:
    """The smallest power of two from n on, within bounds."""
    return min(most, max(least, 1 << (n - 1).bit_length()))
