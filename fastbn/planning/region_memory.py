"""The memory that a region's step occupies, counted without allocating it: the walk itself, by the engine's
operations as allocations alone (engine/workspace.py).

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
from fastbn.engine.interface import Engine, Execution, LazyActivation
from fastbn.engine.native.memory_layout import Span, lay_out, scratch_bytes
from fastbn.graph.regions import Region, Shape


class Meter:
    """The memory of a workspace: bytes that are alive, and the most that were; and from which to which
    operation each tensor is in use."""

    def __init__(self, activations: torch.dtype, gradients: torch.dtype) -> None:
        self._activations, self._gradients = activations, gradients
        self.live = self.peak = self.operations = 0
        self.spans: list[Span] = []

    def activation(self, shape: Shape) -> Ghost:
        """Return a tensor of the forward's dtype."""
        return Ghost(self, shape, self._activations.itemsize, self._activations)

    def gradient(self, shape: Shape) -> Ghost:
        """Return a tensor of the backward's dtype."""
        return Ghost(self, shape, self._gradients.itemsize, self._gradients)

    def mask(self, shape: Shape, pixel: int) -> Ghost:
        """Return a mask of so many bytes a pixel."""
        n, _, h, w = shape
        return Ghost(self, (n, 1, h, w), pixel, torch.uint8)

    def operate(self, *operands: Any) -> None:
        """Begin the next operation, which reads these: ghosts, and activations of them."""
        self.operations += 1
        for operand in operands:
            ghosts: Any = (
                (*operand.ys, operand.residual) if isinstance(operand, LazyActivation) else (operand,)
            )
            for ghost in ghosts:
                if ghost is not None:
                    ghost.span.last = self.operations

    def add(self, size: int) -> Span:
        """Count bytes that are alive from now on."""
        self.live += size
        self.peak = max(self.peak, self.live)
        self.spans.append(Span(size, self.operations, self.operations))
        return self.spans[-1]


class Ghost:
    """A tensor that is not there: its bytes count for as long as anything refers to it."""

    def __init__(self, meter: Meter, shape: tuple[int, ...], itemsize: int, dtype: torch.dtype):
        self.shape, self.dtype = shape, dtype
        self._meter, self.bytes = meter, math.prod(shape) * itemsize
        self.span = meter.add(self.bytes)

    def __del__(self) -> None:
        self._meter.live -= self.bytes

    def new_empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a real tensor: the vectors, which are not counted."""
        return torch.empty(shape, dtype=dtype)


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes beyond a region's inputs: at the peak of its forward and of its backward (what was saved among
    it), of what is saved between the two, and of its outputs."""

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
    """Return what a call of a region occupies.

    wanted: by input, whether it requires a gradient. dtypes: what activations and gradients are stored in.
    again: the spans of joins that the backward runs a second time."""
    meter = Meter(*dtypes)
    trains = [any(t is not None and t.requires_grad for t in (norm.weight, norm.bias)) for _, norm in modules]
    live = walk.live_values(region, list(wanted), trains)
    call = walk.Call(
        region,
        engine.workspace(meter),
        modules,
        [None] * len(modules),
        region.shapes(inputs),
        live,
        dtypes[1],
        again,
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
            arriving: Any = [meter.gradient(call.shapes[z]) if z in live else None for z in region.outputs]
            gradients: Any
            back = {g.span for g in arriving if g is not None}
            gradients = walk.backward(call, arriving, vectors, saved)
            back |= {g.span for g in gradients.inputs.values()}
    backward = meter.peak
    if engine.execution is Execution.PROGRAM:  # whose memory is laid out beforehand
        calls = range(meter.operations + 1)
        others = [span for span in meter.spans if span not in saving | handed | back]
        kept = lay_out([span for span in meter.spans if span in saving], others, len(calls))
        forward = kept + scratch_bytes(others, calls[:turn]) + outputs
        backward = (
            kept + scratch_bytes(others, calls[turn:]) + sum(span.bytes for span in back) if back else 0
        )
    return Footprint(forward, backward, kept if back else 0, outputs)
