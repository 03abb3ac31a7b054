"""An engine's operations as allocations alone: what a walk by them counts is the engine's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastbn.engine.interface import BackpropPath, Formed, LazyActivation, Mask, Memory, NormTarget
from fastbn.graph.activations import Function
from fastbn.graph.regions import Conv, Shape


class Workspace:
    """The allocations of an engine that forms, convolves and sums as it loads: beside what an operation
    returns it takes a sum of the terms beyond two. An engine that takes more overrides what differs."""

    def __init__(self, memory: Memory, mask_bytes: Callable[[int], int]):
        """mask_bytes: of one pixel's mask of a bit an element, by channels."""
        self.memory, self._mask_bytes = memory, mask_bytes

    def forms_first(self, conv: Conv, source: Shape, keeps: bool) -> bool:
        """Return whether z is formed by a pass before this convolution reads it, rather than as it loads.
        keeps: z or its mask is asked for."""
        return False

    def formed(self, source: Any, keep_z: bool, keep_mask: bool) -> Formed:
        """Allocate what forming a source takes."""
        shape = shape_of(source)
        z = self.memory.activation(shape) if keep_z else None
        return Formed(z, self._mask(shape, source.function) if keep_mask else None)

    def summed(self, paths: list[BackpropPath], terms: list[Any], mask: Mask | None, shape: Shape) -> Any:
        """Allocate what a value's gradient takes."""
        if len(terms) > 2:
            terms = [terms[0], self.memory.gradient(shape)]
        return self.memory.gradient(shape)

    def convolve(
        self, conv: Conv, packed: Any, source: Any, keep_z: bool, keep_mask: bool, target: NormTarget | None
    ) -> tuple[Any, Formed | None]:
        self.memory.operate(source)
        if conv.copies and not isinstance(source, LazyActivation):
            return source, None  # which is its raw output
        formed = None
        if isinstance(source, LazyActivation):
            first = self.forms_first(conv, shape_of(source), keep_z or keep_mask)
            formed = self.formed(source, keep_z or first, keep_mask)
        y = self.memory.activation(conv.shape(shape_of(source)))
        return y, formed and Formed(formed.z if keep_z else None, formed.mask)

    def ready(self, norm: Any) -> None:
        pass

    def settle(self, coefficients: Any) -> Any:
        return coefficients

    def form(self, activation: Any, keep_mask: bool) -> Formed:
        self.memory.operate(activation)
        return self.formed(activation, True, keep_mask)

    def gradient(
        self, paths: list[BackpropPath], added: list[Any], mask: Mask | None, shape: Shape
    ) -> tuple[Any, list[Any]]:
        self.memory.operate(
            *added,
            *(t for path in paths for t in (path.ds, path.y)),
            *((mask.saved, *mask.ys) if mask else ()),
        )
        return self.summed(paths, list(added), mask, shape), [None] * len(mask.ys) if mask is not None else []

    def _mask(self, shape: Shape, function: Function) -> Any:
        """Return what a function's derivative needs: a bit an element, or n itself."""
        if not function.bit:
            return self.memory.activation(shape)
        return self.memory.mask(shape, self._mask_bytes(shape[1]))


def shape_of(source: Any) -> Shape:
    """Return the shape of what a convolution reads."""
    n, c, h, w = (source.ys[0] if isinstance(source, LazyActivation) else source).shape
    return n, c, h, w
