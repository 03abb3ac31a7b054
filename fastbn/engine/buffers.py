"""Memory for activations that comes back: a tensor's block is kept when the tensor dies, and given to the
next that it fits.

A training step asks for the same sizes in every turn, so after the first step nothing is allocated. Fresh
memory costs a page fault every 4 KB, about a millisecond for an activation of 8 MB."""

from __future__ import annotations

import bisect
import collections
import math
import threading
import weakref
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

# a block may be this many times as large as what is asked for: the ragged last batch uses the whole batches'
# blocks
MOST = 8
LINE = 64  # bytes of a cache line: a vector that straddles two is loaded twice


class BlockPool(Protocol):
    """A source of tensors."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor."""


def activation(memory: BlockPool, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised logical (N, C, H, W), channels-last."""
    n, c, h, w = shape
    return memory.empty((n, h, w, c), dtype).permute(0, 3, 1, 2)


class Buffers:
    """Blocks by size. A block is out for as long as any tensor views it, so forwards and backwards may
    overlap as they like."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []  # by rising size
        # come back, not yet among the free ones
        self._back: collections.deque[np.ndarray] = collections.deque()
        self._lock = threading.Lock()
        self.bytes = 0  # in all blocks, out or not

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            block = self._fitting(size)
        lent = block[:size]  # its own object: it dies with the last tensor on it
        # at any moment, in any thread: one atomic append
        weakref.finalize(lent, self._back.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

    def _fitting(self, size: int) -> np.ndarray:
        """Return the smallest free block that is large enough, and not much too large; else a new one."""
        while self._back:
            block = self._back.popleft()
            # the last to come back, still in a cache, first
            self._free.insert(bisect.bisect_left(self._free, len(block), key=len), block)
        place = bisect.bisect_left(self._free, size, key=len)
        if place < len(self._free) and len(self._free[place]) <= MOST * size:
            return self._free.pop(place)
        room = np.empty(size + LINE, np.uint8)
        start = -room.ctypes.data % LINE
        self.bytes += size
        return room[start : start + size]
