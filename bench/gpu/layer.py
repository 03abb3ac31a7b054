"""A convolution with its BatchNorm on a device, forward and backward, by the engine's kernels as they are
tuned. The cases are those of the tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from bench.gpu.measure import DEVICE
from bench.oracle import operations
from bench.suite.clock import Call
from fastbn.engine.interface import BackpropPath, Engine, LazyActivation, Mask
from fastbn.graph.activations import RELU


@dataclasses.dataclass
class Tensors:
    """One set of the tensors that a forward and a gradient of one layer read."""

    y: Tensor  # (N, C, H, W) of the layer before, raw
    ds: Tensor  # of this layer's output, masked
    own: Tensor  # this layer's raw output


class Layer:
    """A case in a precision on a device, and the calls that run it."""

    def __init__(self, case: operations.Case, dtype: torch.dtype, device: str = str(DEVICE)):
        self.case, self.dtype, self.device = case, dtype, device
        self.weight = case.weight().to(device, dtype)
        self.norm = operations.norm(case.c, 2, device=device)
        self.targets = [operations.target(case.oc, seed=seed, device=device) for seed in (20, 40)]
        self.coefficients = tuple(operations.draw(3, case.oc, seed=9, device=device))
        self.affine = operations.affine(case.c, device)

    def tensors(self, seed: int) -> Tensors:
        out, shared = self.case.conv().shape(self.case.source), {"dtype": self.dtype, "device": self.device}
        shapes = (self.case.source, out, out)
        return Tensors(*(operations.activation(*s, seed=seed + k, **shared) for k, s in enumerate(shapes)))

    def call(
        self, engine: Engine, t: Tensors, backward: bool = False, twice: bool = False, packed: Any = None
    ) -> Call:
        """Return an engine's forward, or its gradient: once, with its BatchNorm ended by a launch of its own;
        or twice, as channels allow, where the second ends the first one's BatchNorm in the engine's own way.
        The images themselves are read where their channels are no activation's. packed: the weight, where it
        is not packed as the engine would."""
        conv, source, (target, second) = self.case.conv(), self.case.source, self.targets
        packed = engine.pack(conv, self.weight, self.dtype) if packed is None else packed
        read = t.y if self.case.c % 8 else LazyActivation((t.y,), (self.norm,), None, RELU)

        def mask(y: Tensor) -> Mask:
            return Mask(RELU, None, (y,), (self.norm,), (self.affine,))

        def forward() -> Tensor:
            y, _ = engine.convolve(conv, packed, read, False, False, target)
            if not twice:
                engine.ready(target.norm)
                return y
            z = LazyActivation((y,), (target.norm,), None, RELU)
            return engine.convolve(conv, packed, z, False, False, second)[0]

        def gradient() -> Tensor:
            path = BackpropPath(conv, packed, t.ds, t.own, self.coefficients)
            ds, due = engine.gradient([path], [], mask(t.y), source)
            if not twice:
                engine.settle(*due)
                return ds
            path = BackpropPath(conv, packed, ds, t.y, *due)
            return engine.gradient([path], [], mask(t.own), source)[0]

        return gradient if backward else forward
