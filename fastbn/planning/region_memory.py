"""What a region's step occupies, counted without a byte of it: the walk itself is run by an engine that only
allocates.

Counted   activations, their gradients, masks, and what an engine allocates beside them while an operation
runs.
Left out  vectors of one number a channel, partial sums, workspaces inside a library.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine import walk
from fastbn.engine.interface import BackpropPath, Engine, Formed, LazyActivation, Mask, NormTarget
from fastbn.engine.native.memory_layout import Span, lay_out, scratch_bytes
from fastbn.graph.activations import IDENTITY, Function
from fastbn.graph.regions import Conv, Region, Shape


class Meter:
    """A count of the bytes that are alive, and the most that were; and of the operations between which each
    tensor is in use."""

    def __init__(self) -> None:
        self.live = self.peak = self.operations = 0
        self.spans: list[Span] = []

    def add(self, size: int) -> Span:
        self.live += size
        self.peak = max(self.peak, self.live)
        self.spans.append(Span(size, self.operations, self.operations))
        return self.spans[-1]

    def operate(self, *operands: Any) -> None:
        """Begin the next operation, and note what it reads: ghosts, and activations of them."""
        self.operations += 1
        for operand in operands:
            ghosts: Any = (
                (*operand.ys, operand.residual) if isinstance(operand, LazyActivation) else (operand,)
            )
            for ghost in ghosts:
                if ghost is not None:
                    ghost.span.last = self.operations


class Ghost:
    """A tensor that is not there: its bytes count for as long as anything refers to it."""

    def __init__(self, meter: Meter, shape: tuple[int, ...], itemsize: int, dtype: torch.dtype):
        self.shape, self.dtype = shape, dtype
        self._meter, self.bytes = meter, math.prod(shape) * itemsize
        self.span = meter.add(self.bytes)

    def __del__(self) -> None:
        self._meter.live -= self.bytes

    def new_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)  # the vectors: they are not counted


@dataclasses.dataclass(frozen=True)
class Footprint:
    """A region's bytes beyond its inputs: at the peak of its forward and of its backward (what was saved
    among it), of what is saved between the two, and of its outputs."""

    forward: int
    backward: int
    saved: int
    outputs: int


def footprint(
    region: Region,
    modules: list[tuple[nn.Conv2d, nn.BatchNorm2d]],
    engine: Engine,
    inputs: tuple[Shape, ...],
    wanted: tuple[bool, ...],
    dtypes: tuple[torch.dtype, torch.dtype],
    again: tuple[range, ...] = (),
) -> Footprint:
    """Return a region's footprint. wanted: by input, whether it requires a gradient. dtypes: what activations
    and gradients are stored in."""
    meter = Meter()
    own: Any = _Allocating(meter, engine, dtypes)
    trains = [any(t is not None and t.requires_grad for t in (norm.weight, norm.bias)) for _, norm in modules]
    live = walk.live_values(region, list(wanted), trains)
    call = walk.Call(
        region, own, modules, [None] * len(modules), region.shapes(inputs), live, dtypes[1], again
    )
    given: Any = [Ghost(meter, shape, 0, dtypes[0]) for shape in inputs]
    with torch.no_grad():
        made: Any
        saved: Any
        made, vectors, saved = walk.forward(call, given)
        forward, turn = meter.peak, meter.operations + 1
        outputs, handed = sum(z.bytes for z in made), {z.span for z in made}
        saving = {t.span for t in saved} - handed
        del made
        kept, meter.peak, back = meter.live, 0, set()
        if not live.isdisjoint(region.outputs):
            meter.peak = meter.live
            arriving: Any = [
                Ghost(meter, call.shapes[z], dtypes[1].itemsize, dtypes[1]) if z in live else None
                for z in region.outputs
            ]
            found: Any
            back = {g.span for g in arriving if g is not None}
            found = walk.backward(call, arriving, vectors, saved)
            back |= {g.span for g in found.inputs.values()}
    backward = meter.peak
    if engine.name == "native":  # which lays its memory out beforehand
        calls = range(meter.operations + 1)
        others = [span for span in meter.spans if span not in saving | handed | back]
        kept = lay_out([span for span in meter.spans if span in saving], others, len(calls))
        forward = kept + scratch_bytes(others, calls[:turn]) + outputs
        backward = (
            kept + scratch_bytes(others, calls[turn:]) + sum(span.bytes for span in back) if back else 0
        )
    return Footprint(forward, backward, kept if back else 0, outputs)


class _Allocating:
    """An engine that allocates what the real one does, operation by operation."""

    name = "allocating"

    def __init__(self, meter: Meter, engine: Engine, dtypes: tuple[torch.dtype, torch.dtype]):
        self._meter, self._engine = meter, engine
        self._activations, self._gradients = dtypes

    def convolve(
        self, conv: Conv, packed: Any, source: Any, keep_z: bool, keep_mask: bool, target: NormTarget | None
    ) -> tuple[Any, Formed | None]:
        self._meter.operate(source)
        formed = None
        if isinstance(source, LazyActivation):
            formed = self._form(
                source,
                keep_z or self._engine.forms_first(conv, _shape(source), keep_z or keep_mask),
                keep_mask,
            )
        y = self._activation(conv.shape(_shape(source)))
        return y, formed and Formed(formed.z if keep_z else None, formed.mask)

    def ready(self, norm: Any) -> None:
        pass

    def settle(self, coefficients: Any) -> Any:
        return coefficients

    def form(self, activation: Any, keep_mask: bool) -> Formed:
        self._meter.operate(activation)
        return self._form(activation, True, keep_mask)

    def gradient(
        self, paths: list[BackpropPath], added: list[Any], mask: Mask | None, shape: Shape
    ) -> tuple[Any, list[Any]]:
        self._meter.operate(
            *added,
            *(t for path in paths for t in (path.ds, path.y)),
            *((mask.saved, *mask.ys) if mask else ()),
        )
        terms = list(added)
        if self._engine.name == "reference":
            ds = self._by_tensor_code(paths, terms, mask, shape)
        else:
            others = [path for path in paths if self._engine.aside(path.conv, shape[2:])]
            for path in others:
                dy, unread = self._gradient(path.ds.shape), None if mask else self._gradient(shape)
                terms.append(self._gradient(shape))
                del dy, unread
            ours = len(paths) - len(others)
            terms += [self._gradient(shape) for _ in range(ours - 1)] if self._engine.name == "triton" else []
            if len(terms) > 2:
                terms = [terms[0], self._gradient(shape)]
            ds = self._gradient(shape)
        return ds, [None] * len(mask.ys) if mask is not None else []

    def _by_tensor_code(
        self, paths: list[BackpropPath], added: list[Any], mask: Mask | None, shape: Shape
    ) -> Any:
        dz = None
        for path in paths:
            dy = self._gradient(path.ds.shape)
            dx = self._gradient(shape)
            del dy
            dz = dz or dx
            del dx
        ours = dz is not None
        for term in added:
            fresh = dz is not None and not ours
            dz = self._gradient(shape) if fresh else dz or term
            ours = ours or fresh
        if (
            mask is None
            or mask.function == IDENTITY
            or (mask.saved is not None and ours and mask.function.bit)
        ):
            return dz
        if mask.saved is not None:
            return self._gradient(shape)
        scratch = self._activation(shape)
        ds = self._gradient(shape)
        del scratch
        return ds

    def _form(self, source: Any, keep_z: bool, keep_mask: bool) -> Formed:
        shape = _shape(source)
        z = self._activation(shape) if keep_z else None
        if self._engine.name == "reference" and len(source.ys) > 1:
            second = self._activation(shape)
            del second
        return Formed(z, self._mask(shape, source.function) if keep_mask else None)

    def _activation(self, shape: Shape) -> Any:
        return Ghost(self._meter, shape, self._activations.itemsize, self._activations)

    def _gradient(self, shape: tuple[int, ...]) -> Any:
        return Ghost(self._meter, shape, self._gradients.itemsize, self._gradients)

    def _mask(self, shape: Shape, function: Function) -> Any:
        """Return what a function's derivative needs: a bit per element, or n itself."""
        if not function.bit:
            return self._activation(shape)
        n, c, h, w = shape
        return Ghost(self._meter, (n, 1, h, w), self._engine.mask_bytes(c), torch.uint8)


def _shape(source: Any) -> Shape:
    n, c, h, w = (source.ys[0] if isinstance(source, LazyActivation) else source).shape
    return n, c, h, w
