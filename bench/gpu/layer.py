"""A convolution with its BatchNorm on this device, forward and backward, and what can carry it out: the
engine's kernels, cuDNN alone, stock's passes. The cases are those of the tests."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.measure import CAPABILITY, DEVICE, Call, import_tests
from fastbn.engine.interface import BackpropPath, LazyActivation, Mask
from fastbn.engine.triton.engine import Triton
from fastbn.graph.activations import RELU

import_tests()
import operations  # noqa: E402


@dataclasses.dataclass
class Tensors:
    """One set: what a forward and a gradient of one layer read."""

    y: Tensor  # (N, C, H, W) of the layer before, raw
    ds: Tensor  # of this layer's output, masked
    own: Tensor  # this layer's raw output
    z: Tensor  # relu(scale·y + shift), for stock's passes


class Layer:
    """A case in a precision, and what carries it out."""

    def __init__(self, case: operations.Case, dtype: torch.dtype):
        self.case, self.dtype, device = case, dtype, str(DEVICE)
        self.weight = case.weight().to(DEVICE, dtype)
        self.library = self.weight.contiguous(memory_format=torch.channels_last)
        self.norm, self.target = (
            operations.norm(case.c, 2, device=device),
            operations.target(case.oc, device=device),
        )
        self.coefficients = tuple(operations.draw(3, case.oc, seed=9, device=device))
        self.affine = operations.affine(case.c, device)
        self.saved = [t.float() for t in self.norm.vectors[:2]]

    def tensors(self, seed: int) -> Tensors:
        out = self.case.conv().shape(self.case.source)
        shapes = (self.case.source, out, out)
        y, ds, own = (
            operations.activation(*s, seed=seed + k, dtype=self.dtype, device=str(DEVICE))
            for k, s in enumerate(shapes)
        )
        return Tensors(y, ds, own, F.relu(y))

    def fused_forward(self, by: str, t: Tensors, ends: bool = False) -> Call:
        """ends: its BatchNorm is made ready too, by a launch of its own. The images themselves are read where
        their channels are no activation's."""
        engine, conv = Triton(CAPABILITY, by), self.case.conv()
        packed, read = (
            engine.pack(conv, self.weight, self.dtype),
            LazyActivation((t.y,), (self.norm,), None, RELU),
        )

        def run() -> Tensor:
            y, _ = engine.convolve(conv, packed, t.y if self.case.c % 8 else read, False, False, self.target)
            if ends:
                engine.ready(self.target.norm)
            return y

        return run

    def fused_gradient(self, by: str, t: Tensors, ends: bool = False) -> Call:
        """ends: dγ, dβ and the coefficients are made too, by a launch of its own."""
        engine, conv = Triton(CAPABILITY, by), self.case.conv()
        path = BackpropPath(conv, engine.pack(conv, self.weight, self.dtype), t.ds, t.own, self.coefficients)
        mask = Mask(RELU, None, (t.y,), (self.norm,), (self.affine,))

        def run() -> Tensor:
            ds, coefficients = engine.gradient([path], [], mask, self.case.source)
            if ends:
                engine.settle(*coefficients)
            return ds

        return run

    def two_forwards(self, by: str, t: Tensors) -> Call:
        """This layer twice, as channels allow: the second ends the first one's BatchNorm, in whatever way
        the engine does it."""
        engine, conv, second = (
            Triton(CAPABILITY, by),
            self.case.conv(),
            operations.target(self.case.oc, seed=40, device=str(DEVICE)),
        )
        packed, read = (
            engine.pack(conv, self.weight, self.dtype),
            LazyActivation((t.y,), (self.norm,), None, RELU),
        )

        def run() -> Tensor:
            y, _ = engine.convolve(conv, packed, read, False, False, self.target)
            return engine.convolve(
                conv, packed, LazyActivation((y,), (self.target.norm,), None, RELU), False, False, second
            )[0]

        return run

    def two_gradients(self, by: str, t: Tensors) -> Call:
        """And back."""
        engine, conv = Triton(CAPABILITY, by), self.case.conv()
        packed = engine.pack(conv, self.weight, self.dtype)
        masks = [Mask(RELU, None, (y,), (self.norm,), (self.affine,)) for y in (t.y, t.own)]

        def run() -> Tensor:
            ds, due = engine.gradient(
                [BackpropPath(conv, packed, t.ds, t.own, self.coefficients)], [], masks[0], self.case.source
            )
            return engine.gradient(
                [BackpropPath(conv, packed, ds, t.y, *due)], [], masks[1], self.case.source
            )[0]

        return run

    def library_forward(self, t: Tensors) -> Call:
        return lambda: self._convolved(t.z)

    def library_gradient(self, t: Tensors) -> Call:
        return lambda: self._returned(t.ds, t.z)

    def stock_forward(self, t: Tensors) -> Call:
        m = self.target.module

        def run() -> Tensor:
            return F.batch_norm(
                self._convolved(F.relu(t.y)), m.running_mean, m.running_var, m.weight, m.bias, True
            )

        return run

    def stock_gradient(self, t: Tensors) -> Call:
        """PyTorch's own BatchNorm kernels: cuDNN's want a reserve that only its forward hands out."""
        m, aten = self.target.module, torch.ops.aten

        def run() -> Tensor:
            moving = m.running_mean, m.running_var
            dy = aten.native_batch_norm_backward(
                t.ds, t.own, m.weight, *moving, *self.saved, True, m.eps, [True, True, True]
            )[0]
            return aten.threshold_backward(self._returned(dy, t.z), t.z, 0)

        return run

    def _convolved(self, z: Tensor) -> Tensor:
        conv = self.case.conv()
        return F.conv2d(z, self.library, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    def _returned(self, dy: Tensor, z: Tensor) -> Tensor:
        """conv2dᵀ(dy)."""
        conv, backward = self.case.conv(), torch.ops.aten.convolution_backward
        geometry = conv.stride, conv.padding, conv.dilation, False, [0, 0], conv.groups
        return backward(dy, z, self.library, None, *geometry, (True, False, False))[0]
