"""A convolution with its BatchNorm on this device, forward and backward, by the engine's kernels as they are
tuned. The cases are those of the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.gpu.measure import CAPABILITY, DEVICE
from bench.oracle import operations
from bench.suite.clock import Call, captured
from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import BackpropPath, LazyActivation, Mask
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning_table import Tuning
from fastbn.graph.activations import RELU


def repeated(calls: Sequence[Call], keep: bool) -> Call:
    """Return all calls in turn as one: on CUDA a graph. keep: no result's memory is used twice."""

    def run() -> list[Any]:
        kept = []
        for call in calls:
            found = call()
            if keep:
                kept.append(found)
        return kept

    return captured(run, DEVICE)


@dataclasses.dataclass
class Tensors:
    """One set of the tensors that a forward and a gradient of one layer read."""

    y: Tensor  # (N, C, H, W) of the layer before, raw
    ds: Tensor  # of this layer's output, masked
    own: Tensor  # this layer's raw output


class Layer:
    """A case in a precision, and the calls that run it."""

    def __init__(self, case: operations.Case, dtype: torch.dtype):
        self.case, self.dtype, device = case, dtype, str(DEVICE)
        self.weight = case.weight().to(DEVICE, dtype)
        self.norm = operations.norm(case.c, 2, device=device)
        self.target = operations.target(case.oc, device=device)
        self.coefficients = tuple(operations.draw(3, case.oc, seed=9, device=device))
        self.affine = operations.affine(case.c, device)

    def tensors(self, seed: int) -> Tensors:
        out = self.case.conv().shape(self.case.source)
        shapes = (self.case.source, out, out)
        y, ds, own = (
            operations.activation(*s, seed=seed + k, dtype=self.dtype, device=str(DEVICE))
            for k, s in enumerate(shapes)
        )
        return Tensors(y, ds, own)

    def fused_forward(
        self, by: Algorithm, t: Tensors, ends: bool = False, tuning: Tuning | None = None
    ) -> Call:
        """Return the engine's forward. ends: its BatchNorm is made ready too, by a launch of its own. The
        images themselves are read where their channels are no activation's."""
        engine, conv = Triton(CAPABILITY, by, tuning), self.case.conv()
        packed = engine.pack(conv, self.weight, self.dtype)
        read = LazyActivation((t.y,), (self.norm,), None, RELU)

        def run() -> Tensor:
            y, _ = engine.convolve(conv, packed, t.y if self.case.c % 8 else read, False, False, self.target)
            if ends:
                engine.ready(self.target.norm)
            return y

        return run

    def fused_gradient(
        self, by: Algorithm, t: Tensors, ends: bool = False, tuning: Tuning | None = None
    ) -> Call:
        """Return the engine's gradient. ends: dγ, dβ and the coefficients are made too, by a launch of its
        own."""
        engine, conv = Triton(CAPABILITY, by, tuning), self.case.conv()
        path = BackpropPath(conv, engine.pack(conv, self.weight, self.dtype), t.ds, t.own, self.coefficients)
        mask = Mask(RELU, None, (t.y,), (self.norm,), (self.affine,))

        def run() -> Tensor:
            ds, coefficients = engine.gradient([path], [], mask, self.case.source)
            if ends:
                engine.settle(*coefficients)
            return ds

        return run

    def two_forwards(self, by: Algorithm, t: Tensors, tuning: Tuning | None = None) -> Call:
        """Return this layer's forward twice, as channels allow: the second ends the first one's BatchNorm, in
        whatever way the engine does it."""
        engine, conv = Triton(CAPABILITY, by, tuning), self.case.conv()
        second = operations.target(self.case.oc, seed=40, device=str(DEVICE))
        packed = engine.pack(conv, self.weight, self.dtype)
        read = LazyActivation((t.y,), (self.norm,), None, RELU)

        def run() -> Tensor:
            y, _ = engine.convolve(conv, packed, read, False, False, self.target)
            z = LazyActivation((y,), (self.target.norm,), None, RELU)
            return engine.convolve(conv, packed, z, False, False, second)[0]

        return run

    def two_gradients(self, by: Algorithm, t: Tensors, tuning: Tuning | None = None) -> Call:
        """Return the gradient of both."""
        engine, conv = Triton(CAPABILITY, by, tuning), self.case.conv()
        packed = engine.pack(conv, self.weight, self.dtype)
        masks = [Mask(RELU, None, (y,), (self.norm,), (self.affine,)) for y in (t.y, t.own)]

        def run() -> Tensor:
            path = BackpropPath(conv, packed, t.ds, t.own, self.coefficients)
            ds, due = engine.gradient([path], [], masks[0], self.case.source)
            path = BackpropPath(conv, packed, ds, t.y, *due)
            return engine.gradient([path], [], masks[1], self.case.source)[0]

        return run
