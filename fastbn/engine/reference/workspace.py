"""The allocations of the reference engine: PyTorch's own operations, each with a result of its own."""

from __future__ import annotations

from typing import Any

from fastbn.engine.interface import BackpropPath, Formed, Mask
from fastbn.engine.workspace import Workspace, shape_of
from fastbn.graph.activations import IDENTITY
from fastbn.graph.regions import Conv, Shape


class ReferenceWorkspace(Workspace):
    """The allocations of tensor code: z before a convolution reads it, a second term's z beside the first, dy
    of every path, and a fresh sum where what arrived is not the engine's to write on."""

    def forms_first(self, conv: Conv, source: Shape, keeps: bool) -> bool:
        return True

    def formed(self, source: Any, keep_z: bool, keep_mask: bool) -> Formed:
        shape = shape_of(source)
        z = self.memory.activation(shape) if keep_z else None
        if len(source.ys) > 1:
            second = self.memory.activation(shape)
            del second
        return Formed(z, self._mask(shape, source.function) if keep_mask else None)

    def summed(self, paths: list[BackpropPath], terms: list[Any], mask: Mask | None, shape: Shape) -> Any:
        dz = None
        for path in paths:
            n, c, h, w = path.ds.shape
            dy = self.memory.gradient((n, c, h, w))
            dx = self.memory.gradient(shape)
            del dy
            dz = dz or dx
            del dx
        ours = dz is not None
        for term in terms:
            fresh = dz is not None and not ours
            dz = self.memory.gradient(shape) if fresh else dz or term
            ours = ours or fresh
        if (
            mask is None
            or mask.function == IDENTITY
            or (mask.saved is not None and ours and mask.function.bit)
        ):
            return dz
        if mask.saved is not None:
            return self.memory.gradient(shape)
        scratch = self.memory.activation(shape)
        ds = self.memory.gradient(shape)
        del scratch
        return ds
