"""The operations of a walk, counted in place of run: what an engine moves that reads and writes each tensor
of an operation once."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from fastbn.engine.interface import BackpropPath, Formed, LazyActivation, Mask, NormTarget
from fastbn.graph.regions import Conv, Shape
from fastbn.planning.cost import Cost, TrafficPass


@dataclasses.dataclass(eq=False)
class CountedTensor:
    """A tensor that is not there: its shape and its bytes, and the convolution whose raw output it is."""

    shape: Shape
    bytes: int
    conv: Conv | None = None
    dtype: torch.dtype = torch.float32

    def new_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a real tensor: the vectors, which are not counted."""
        return torch.empty(shape, dtype=dtype)


class CountingOperations:
    """The operations of engine/interface.py on counted tensors; `passes` is a pass an operation."""

    def __init__(self, activation: int, gradient: int):
        """Take the bytes of one element: of activations and weights, and of gradients."""
        self._activation, self._gradient = activation, gradient
        self.passes: list[TrafficPass] = []

    def activation(self, shape: Shape, conv: Conv | None = None) -> CountedTensor:
        """Return a tensor of the forward's element size."""
        return CountedTensor(shape, math.prod(shape) * self._activation, conv)

    def arriving(self, shape: Shape) -> CountedTensor:
        """Return a tensor of the backward's element size."""
        return CountedTensor(shape, math.prod(shape) * self._gradient)

    def convolve(
        self, conv: Conv, packed: Any, source: Any, keep_z: bool, keep_mask: bool, target: NormTarget | None
    ) -> tuple[Any, Formed | None]:
        formed, read = None, Cost(source.bytes) if isinstance(source, CountedTensor) else Cost()
        if isinstance(source, LazyActivation):
            formed, read = self._formed(source, keep_z, keep_mask)
        z: Any = source.ys[0] if isinstance(source, LazyActivation) else source
        if conv.copies and formed is None:
            if target is not None and target.norm.batch:  # its statistics
                self.passes.append(TrafficPass(conv.norm, read + Cost(launches=1)))
            return dataclasses.replace(source, conv=conv), None
        y = self.activation(conv.shape(z.shape), conv)
        made = Cost(0, y.bytes, *multiplied(conv, y.shape, self._activation), 1)
        self.passes.append(TrafficPass(conv.name or conv.norm, read + made))
        return y, formed

    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        formed, moved = self._formed(activation, True, keep_mask)
        first: Any = activation.ys[0]
        self.passes.append(
            TrafficPass(f"{first.conv.norm or first.conv.name} form", moved + Cost(launches=1))
        )
        return formed

    def gradient(
        self, paths: list[BackpropPath], added: list[Any], mask: Mask | None, shape: Shape
    ) -> tuple[Any, list[Any]]:
        read: list[Any] = [*added, *(path.ds for path in paths)]
        read += [path.y for path in paths if path.coefficients is True]  # of statistics of the batch
        read += [*mask.ys, mask.saved] if mask is not None else []
        once = {id(t): t.bytes for t in read if t is not None}  # what two terms read is read once
        ds = self.arriving(shape)
        moved = Cost(sum(once.values()), ds.bytes, launches=1)
        for path in paths:
            out: Any = path.ds.shape
            moved += Cost(0, 0, *multiplied(path.conv, out, self._activation))
        first: Any = mask.ys[0] if mask is not None else None
        alone = "sum" if first is None else f"{first.conv.norm or first.conv.name} mask"
        named = (path.conv.name for path in paths)
        self.passes.append(TrafficPass(" + ".join(filter(None, named)) or alone, moved))
        return ds, [norm.batch for norm in mask.norms] if mask is not None else []

    def ready(self, norm: Any) -> None:
        pass

    def settle(self, coefficients: Any) -> Any:
        return coefficients

    def _formed(self, source: LazyActivation, keep_z: bool, keep_mask: bool) -> tuple[Formed, Cost]:
        """Return what forming a source leaves, and what it moves."""
        like: Any = source.ys[0]
        z = self.activation(like.shape)
        mask = self.activation(like.shape)  # n itself
        if source.function.bit:
            mask = CountedTensor(like.shape, -(-math.prod(like.shape) // 8))
        terms = len(source.ys) + (source.residual is not None)
        moved = Cost(terms * z.bytes, keep_z * z.bytes + keep_mask * mask.bytes)
        return Formed(z if keep_z else None, mask if keep_mask else None), moved  # type: ignore[arg-type]


def multiplied(conv: Conv, out: Shape, itemsize: int) -> tuple[int, int]:
    """Return a weight's bytes and the FLOPs of its convolution, whose output has this shape; its input's and
    its weight's gradients cost as many."""
    each = math.prod(conv.weight_shape[1:])
    return conv.channels * each * itemsize, 2 * each * math.prod(out)
