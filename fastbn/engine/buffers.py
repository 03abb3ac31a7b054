"""Memory for activations that comes back: a tensor's block is kept when the tensor dies, and given to the next of its size.

A training step asks for the same sizes in every turn, so after the first step nothing is allocated. Fresh memory costs a page
fault every 4 KB, about a millisecond for an activation of 8 MB.
"""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from torch import Tensor

LINE = 64  # bytes of a cache line: a vector that straddles two is loaded twice


class Buffers:
    """Blocks by size. A block is out for as long as any tensor views it, so forwards and backwards may overlap as they like."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self.bytes = 0  # in all blocks, out or not

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        if free:
            block = free.pop()
        else:
            room = np.empty(size + LINE, np.uint8)
            start = -room.ctypes.data % LINE
            block = room[start : start + size]
            self.bytes += size
        lent = block[:]  # its own object: it dies with the last tensor on it
        weakref.finalize(lent, free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)
