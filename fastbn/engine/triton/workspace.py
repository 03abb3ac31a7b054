"""The allocations of the Triton engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import BackpropPath, Mask, Memory
from fastbn.engine.triton.operations import forms_first, mask_bytes
from fastbn.engine.workspace import Workspace
from fastbn.graph.regions import Conv, Shape


class TritonWorkspace(Workspace):
    """The allocations of launches: z where a kernel can't form it, dy for the library's input gradient and
    that gradient beside the sum, and a term for each path but the last."""

    def __init__(self, memory: Memory, algorithm: Callable[[Conv, tuple[int, int]], Algorithm]):
        super().__init__(memory, mask_bytes)
        self._algorithm = algorithm

    def forms_first(self, conv: Conv, source: Shape, keeps: bool) -> bool:
        return forms_first(self._algorithm(conv, source[2:]), conv, source, keeps)

    def summed(self, paths: list[BackpropPath], terms: list[Any], mask: Mask | None, shape: Shape) -> Any:
        library = [path for path in paths if self._algorithm(path.conv, shape[2:]) is Algorithm.LIBRARY]
        for path in library:
            n, c, h, w = path.ds.shape
            dy, unread = self.memory.gradient((n, c, h, w)), None if mask else self.memory.gradient(shape)
            terms.append(self.memory.gradient(shape))
            del dy, unread
        terms += [self.memory.gradient(shape) for _ in range(len(paths) - len(library) - 1)]
        return super().summed(paths, terms, mask, shape)
