"""Memory for activations that comes back: a tensor's block is kept when the tensor dies, and given to the
next that it fits.

A training step asks for the same sizes in every turn, so after the first step nothing is allocated. Fresh
memory costs a page fault every 4 KB, about a millisecond for an activation of 8 MB."""

from __future__ import annotations

import bisect
import collections
import dataclasses
import math
import threading
import weakref
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

LINE = 64  # bytes of a cache line: a vector that straddles two is loaded twice
# the dtypes that numpy has too
NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}
LARGE = 1 << 20  # bytes from which a block is cut out of a room; smaller ones would leave it in pieces
ROOM = 256 << 20  # bytes of a room's addresses: memory is occupied where it was once written to
# a small block may be this many times as large as what is asked for: the ragged last batch uses the whole
# batches' blocks
MOST = 8


class BlockPool(Protocol):
    """A source of tensors."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised tensor."""


def activation(memory: BlockPool, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised logical (N, C, H, W), channels-last."""
    n, c, h, w = shape
    return memory.empty((n, h, w, c), dtype).permute(0, 3, 1, 2)


@dataclasses.dataclass(frozen=True)
class _Block:
    """Bytes from `start` to `end` of a room; all of a room that is a small block."""

    room: np.ndarray
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Buffers:
    """Blocks by size. A block is out for as long as any tensor views it, so forwards and backwards may
    overlap as they like.

    Large blocks are cut out of the smallest gap of a room that holds them, and what comes back becomes one
    gap with its neighbours (best fit with coalescing: Knuth, The Art of Computer Programming, 2.5): the
    regions of a network ask for many sizes, and each of its own would occupy their sum."""

    def __init__(self) -> None:
        self._small: dict[int, list[_Block]] = {}  # free small blocks by size; the last to come back is last
        self._sizes: list[int] = []  # their sizes, rising
        self._gaps: list[_Block] = []  # of the rooms, by rising size
        self._beginning: dict[tuple[int, int], _Block] = {}  # gaps by room and first byte
        self._ending: dict[tuple[int, int], _Block] = {}  # and by room and end
        # come back, not yet among the free ones
        self._back: collections.deque[_Block] = collections.deque()
        self._lock = threading.Lock()
        self.bytes = 0  # in all small blocks and rooms, out or not

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return an uninitialised tensor."""
        size = math.prod(shape) * dtype.itemsize
        whole = -(-size // LINE) * LINE
        with self._lock:
            while self._back:
                self._return(self._back.popleft())
            block = self._cut(whole) if whole >= LARGE else self._fitting(whole)
        plain = NUMPY.get(dtype)
        # its own object: dies with the last tensor on it
        lent = np.ndarray(shape if plain else size, plain or np.uint8, block.room, block.start)
        # at any moment, in any thread: one atomic append
        weakref.finalize(lent, self._back.append, block).atexit = False
        return torch.from_numpy(lent) if plain else torch.from_numpy(lent).view(dtype).view(shape)

    def _fitting(self, size: int) -> _Block:
        """Return the free small block of this size, or of the next that is not much too large; else a new
        one."""
        if free := self._small.get(size):
            return free.pop()  # the last to come back, still in a cache
        for other in self._sizes[bisect.bisect_left(self._sizes, size) :]:
            if other > MOST * size:
                break
            if self._small[other]:
                return self._small[other].pop()
        return self._new(size)

    def _cut(self, size: int) -> _Block:
        """Return the beginning of the smallest gap that is large enough, else of a new room."""
        place = bisect.bisect_left(self._gaps, size, key=_size)
        gap = self._gaps[place] if place < len(self._gaps) else self._new(max(size, ROOM))
        if place < len(self._gaps):
            self._close(gap)
        if gap.size > size:
            self._open(_Block(gap.room, gap.start + size, gap.end))
        return _Block(gap.room, gap.start, gap.start + size)

    def _new(self, size: int) -> _Block:
        room = np.empty(size + LINE, np.uint8)
        start = -room.ctypes.data % LINE
        self.bytes += size
        return _Block(room[start : start + size], 0, size)

    def _return(self, block: _Block) -> None:
        if block.size < LARGE:
            if block.size not in self._small:
                self._small[block.size] = []
                bisect.insort(self._sizes, block.size)
            self._small[block.size].append(block)
            return
        start, end = block.start, block.end
        if (before := self._ending.get((id(block.room), start))) is not None:
            self._close(before)
            start = before.start
        if (after := self._beginning.get((id(block.room), end))) is not None:
            self._close(after)
            end = after.end
        self._open(_Block(block.room, start, end))

    def _open(self, gap: _Block) -> None:
        self._gaps.insert(bisect.bisect_left(self._gaps, gap.size, key=_size), gap)
        self._beginning[id(gap.room), gap.start] = self._ending[id(gap.room), gap.end] = gap

    def _close(self, gap: _Block) -> None:
        place = bisect.bisect_left(self._gaps, gap.size, key=_size)
        while self._gaps[place] is not gap:
            place += 1
        del self._gaps[place], self._beginning[id(gap.room), gap.start], self._ending[id(gap.room), gap.end]


def _size(block: _Block) -> int:
    return block.size
