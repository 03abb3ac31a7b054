"""A convolution with its BatchNorm on a device, forward and backward, by the engine's kernels as they are
tuned. The cases are those of the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.gpu.measure import DEVICE
from bench.oracle import operations
from bench.suite.clock import Call
from fastbn.engine.interface import BackpropPath, Engine, LazyActivation, Mask
from fastbn.graph.activations import RELU


class Layer:
    """A case in a precision on a device, and the calls that run it.

    y (N, C, H, W) is the raw output of the layer before, own this layer's; ds is the gradient of this layer's
    output, masked."""

    def __init__(self, case: operations.Case, dtype: torch.dtype, device: str = str(DEVICE)):
        self.case, self.dtype, out = case, dtype, case.conv().shape(case.source)
        self.y, self.ds, self.own = (
            operations.activation(*shape, seed=seed, dtype=dtype, device=device)
            for seed, shape in enumerate((case.source, out, out))
        )
        self.weight = case.weight().to(device, dtype)
        self.norm = operations.norm(case.c, 2, device=device)
        self.targets = [operations.target(case.oc, seed=seed, device=device) for seed in (20, 40)]
        self.coefficients = tuple(operations.draw(3, case.oc, seed=9, device=device))
        self.affine = operations.affine(case.c, device)

    def call(self, engine: Engine, backward: bool = False, twice: bool = False, packed: Any = None) -> Call:
        """Return an engine's forward, or its gradient: once, with its BatchNorm ended by a launch of its own;
        or twice, as channels allow, where the second ends the first one's BatchNorm in the engine's own way.
        The images themselves are read where their channels are no activation's. packed: the weight, where it
        is not packed as the engine would."""
        conv, source, (target, second) = self.case.conv(), self.case.source, self.targets
        packed = engine.pack(conv, self.weight, self.dtype) if packed is None else packed
        read = self.y if self.case.c % 8 else LazyActivation((self.y,), (self.norm,), None, RELU)

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
            path = BackpropPath(conv, packed, self.ds, self.own, self.coefficients)
            ds, due = engine.gradient([path], [], mask(self.y), source)
            if not twice:
                engine.settle(*due)
                return ds
            path = BackpropPath(conv, packed, ds, self.y, *due)
            return engine.gradient([path], [], mask(self.own), source)[0]

        return gradient if backward else forward
