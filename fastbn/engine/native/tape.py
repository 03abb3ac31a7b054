"""A tape: what the native engine would do, written down instead of done. It holds the calls of the kernels,
and the memory that they touch, when."""

from __future__ import annotations

import bisect
import ctypes
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastbn.engine.native.abi import ARGUMENTS, POINTER, Called

CALLED = {called.function: called for called in Called}


@dataclasses.dataclass(eq=False)
class TapeBuffer:
    """Memory that calls touch, from the `first` to the `last` of them; its tensor is never written, and
    only has an address."""

    tensor: Tensor
    start: int
    bytes: int
    first: int = -1
    last: int = -1


@dataclasses.dataclass(frozen=True)
class Written:
    """A call: the function, its pointers and its integers in order, and what its structures hold."""

    what: Called
    at: list[int | None]
    n: list[int]
    fields: list[tuple[int, int]]  # of pointers in structures: where they stand, and where they point
    structures: list[Any]  # alive


class Tape:
    """Stands in for a native engine's kernels and for its memory."""

    def __init__(self) -> None:
        self.calls: list[Written] = []
        self.buffers: list[TapeBuffer] = []
        self._starts: list[int] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor as Buffers.empty does; pages that nobody touches take no memory."""
        return self.adopt(torch.empty(shape, dtype=dtype))

    def adopt(self, t: Tensor) -> Tensor:
        """Note a tensor that the walk made for itself; return it."""
        self.buffers.append(TapeBuffer(t, t.data_ptr(), t.numel() * t.element_size()))
        return t

    def find(self, address: int) -> TapeBuffer | None:
        """Return the buffer that an address lies in."""
        if len(self._starts) != len(self.buffers):
            self.buffers.sort(key=lambda buffer: buffer.start)
            self._starts = [buffer.start for buffer in self.buffers]
        place = bisect.bisect_right(self._starts, address) - 1
        found = self.buffers[place] if place >= 0 else None
        return found if found is not None and address < found.start + found.bytes else None

    def note_lifetimes(self) -> None:
        """Fill in every buffer's first and last call."""
        for i, call in enumerate(self.calls):
            for address in (*call.at, *(points for _, points in call.fields)):
                if address is not None and (buffer := self.find(address)) is not None:
                    buffer.first = i if buffer.first < 0 else buffer.first
                    buffer.last = i

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name not in ARGUMENTS:
            raise AttributeError(name)
        return functools.partial(self._write, name)

    def _write(self, name: str, *arguments: Any) -> None:
        at: list[int | None] = []
        n: list[int] = []
        fields: list[tuple[int, int]] = []
        structures: list[Any] = []
        for kind, value in zip(ARGUMENTS[name], arguments, strict=True):
            if kind is not POINTER:
                n.append(value)
            elif value is None or isinstance(value, int):
                at.append(value)
            else:
                given = value if isinstance(value, ctypes.Array) else value._obj  # of a byref
                at.append(ctypes.addressof(given))
                structures.append(given)
                for structure in given if isinstance(given, ctypes.Array) else [given]:
                    fields += _pointers(structure)
        self.calls.append(Written(CALLED[name], at, n, fields, structures))


def _pointers(structure: ctypes.Structure) -> Iterator[tuple[int, int]]:
    """Where a structure's pointers stand, and to what they point; null ones left out."""
    for name, kind, *_ in structure._fields_:
        if kind is POINTER and (value := getattr(structure, name)) is not None:
            yield ctypes.addressof(structure) + getattr(type(structure), name).offset, value
