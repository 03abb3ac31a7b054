"""The graph's operations by the C++ kernels of kernels/cpu, on CPUs. Activations and gradients are stored as
float32 or bfloat16; all arithmetic is float32's, of weights that stay float32.

Each operation is one call that reads what it needs and writes what it makes once: forming z, the convolution
and the statistics are one, and so are dy, the input gradient, the ReLU's mask and BatchNorm's two reductions.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from fastbn.engine import batchnorm
from fastbn.engine.buffers import activation
from fastbn.engine.interface import (
    BackpropPath,
    Coefficients,
    Formed,
    LazyActivation,
    Mask,
    NormTarget,
    NormVectors,
    ProcessGroup,
    Statistics,
)
from fastbn.engine.native import abi
from fastbn.engine.native.weight_layout import PackedWeight
from fastbn.graph.regions import Conv, Shape

SCALE, SHIFT = 2, 3  # rows of a Norm's vectors


class NativeOperations:
    """The operations by calls of a library, or of what stands for one (tape.py)."""

    def __init__(self, kernels: Any, buffers: Any, lanes: int) -> None:
        """buffers: where tensors come from; lanes: floats of the kernels' vectors."""
        self.kernels, self.buffers, self.lanes = kernels, buffers, lanes

    def mask_bytes(self, channels: int) -> int:
        """Return the bytes of one pixel's mask of a bit an element."""
        return -(-channels // self.lanes) * -(-self.lanes // 8)  # whole bytes a vector

    def ready(self, norm: NormVectors) -> None:
        pass  # it is

    def settle(self, coefficients: Coefficients) -> Coefficients:
        return coefficients

    def convolve(
        self,
        conv: Conv,
        packed: PackedWeight,
        source: Tensor | LazyActivation,
        keep_z: bool,
        keep_mask: bool,
        target: NormTarget | None,
    ) -> tuple[Tensor, Formed | None]:
        x = source if isinstance(source, Tensor) else source.ys[0]
        geometry = _geometry(conv, tuple(x.shape))
        own = conv.copies and isinstance(source, Tensor)  # then what it reads is its raw output
        shape = geometry.n, geometry.oc, geometry.oh, geometry.ow
        y = x if own else activation(self.buffers, shape, x.dtype)
        found = (
            self.buffers.empty((2, conv.channels), torch.float64)
            if target is not None and target.norm.batch
            else None
        )
        read, formed = self._source(source, keep_z, keep_mask)
        if not own or found is not None:
            self.kernels.fastbn_convolve(
                ctypes.byref(geometry),
                ctypes.byref(read),
                _at(packed.forward),
                packed.M,
                None if own else _at(y),
                _at(found),
                torch.get_num_threads(),
            )
        if target is not None:
            self._normalise(found, target, geometry.n * geometry.oh * geometry.ow)
        return y, formed if isinstance(source, LazyActivation) else None

    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        n, c, h, w = activation.ys[0].shape
        read, formed = self._source(activation, True, keep_mask)
        self.kernels.fastbn_form(ctypes.byref(read), n * h * w, c, torch.get_num_threads())
        return formed

    def _normalise(self, statistics: Tensor | None, target: NormTarget, rows: int) -> None:
        """statistics: (2, C) float64, mean and variance, or None where the running ones serve."""
        norm, out = target.module, target.norm.vectors
        if target.group is not None or not abi.by_address(norm, target.conv_bias, out.shape[1]):
            batchnorm.normalise(
                None if statistics is None else Statistics(statistics[0], statistics[1]), target, rows
            )
            return
        own = abi.NormStruct(
            c=out.shape[1], eps=norm.eps, stride=out.stride(0), out=_at(out), conv_bias=_at(target.conv_bias)
        )
        own.weight, own.bias = _at(norm.weight), _at(norm.bias)
        own.running_mean, own.running_var = _at(norm.running_mean), _at(norm.running_var)
        if statistics is not None:
            own.mean = _at(statistics)
            own.var = own.mean + out.shape[1] * statistics.element_size()
            own.unbiased = rows / max(rows - 1, 1)
            if batchnorm.moves(norm):
                own.counted = _at(norm.num_batches_tracked)
                own.share = norm.momentum if norm.momentum is not None else -1 if own.counted else 0
        self.kernels.fastbn_normalise(ctypes.byref(own))

    def _finish(
        self, sums: Tensor, norm: NormVectors, rows: int, out: Tensor, group: ProcessGroup | None
    ) -> Coefficients:
        """dγ and dβ into out (2, C); sums: (2, C) float64, Σ ds and Σ ds·(y − μ)."""
        if group is not None:
            return batchnorm.finish((sums[0], sums[1]), norm, rows, out, group)
        vectors, c = norm.vectors, out.shape[1]
        found = self.buffers.empty((3, c))
        self.kernels.fastbn_finish(
            _at(sums), _at(vectors), vectors.stride(0), rows, c, _at(out), out.stride(0), _at(found)
        )
        return (found[0], found[1], found[2]) if norm.batch else (found[0], None, None)

    def gradient(
        self, paths: list[BackpropPath], added: list[Tensor], mask: Mask | None, shape: Shape
    ) -> tuple[Tensor, list[Coefficients]]:
        n, c, h, w = shape
        ds = activation(self.buffers, shape, paths[0].ds.dtype if paths else added[0].dtype)
        value = abi.ValueStruct(n=n, h=h, w=w, c=c, half=_half(ds), ds=_at(ds))
        terms = list(added)
        while len(paths) > 1 and (grouped := next((path for path in paths if path.conv.groups > 1), None)):
            # a kernel of its own, which takes one path
            paths = [path for path in paths if path is not grouped]
            terms.append(self.gradient([grouped], [], None, shape)[0])
        while len(terms) > 2:
            terms.append(self.gradient([], [terms.pop(), terms.pop()], None, shape)[0])
        value.added, value.added_2 = [*map(_at, terms), None, None][:2]
        ways = (abi.PathStruct * max(len(paths), 1))(*(self._path(path, shape) for path in paths))
        sums = None
        if mask is not None:
            sums = self.buffers.empty((len(mask.ys), 2, c), torch.float64)
            value.function, value.slope = abi.FUNCTIONS.index(mask.function.name), mask.function.slope
            value.mask = _at(mask.saved)
            value.y, value.y_r = [*map(_at, mask.ys), None][:2]
            # the mean is the first row
            value.mean, value.mean_r = [*(_at(norm.vectors) for norm in mask.norms), None][:2]
            value.scale, value.shift = _rows_at(mask.norms[0].vectors, SCALE, SHIFT)
        self.kernels.fastbn_gradient(
            ctypes.byref(value), ways, len(paths), _at(sums), torch.get_num_threads()
        )
        if mask is None or sums is None:
            return ds, []
        made = zip(sums, mask.norms, mask.affine, strict=True)
        return ds, [self._finish(pair, norm, n * h * w, out, mask.group) for pair, norm, out in made]

    def _path(self, path: BackpropPath, shape: Shape) -> abi.PathStruct:
        c1, c2, c0 = path.coefficients
        packed: PackedWeight = path.packed
        return abi.PathStruct(
            _geometry(path.conv, shape),
            packed.M,
            _at(path.ds),
            _at(path.y),
            _at(c1),
            _at(c2),
            _at(c0),
            _at(packed.backward),
        )

    def _source(
        self, source: Tensor | LazyActivation, keep_z: bool, keep_mask: bool
    ) -> tuple[abi.SourceStruct, Formed]:
        if isinstance(source, Tensor):
            return abi.SourceStruct(half=_half(source), y=_at(source)), Formed(None, None)
        y, norm = source.ys[0], source.norms[0]
        n, c, h, w = y.shape
        z = activation(self.buffers, (n, c, h, w), y.dtype) if keep_z else None
        function, mask = source.function, None
        if keep_mask and function.bit:
            mask = self.buffers.empty((n * h * w * self.mask_bytes(c),), torch.uint8)
        elif keep_mask:  # n itself
            mask = activation(self.buffers, (n, c, h, w), y.dtype)
        read = abi.SourceStruct(
            function=abi.FUNCTIONS.index(function.name),
            half=_half(y),
            slope=function.slope,
            y=_at(y),
            z=_at(z),
        )
        read.mask = _at(mask)
        if norm.tasks is not None:  # of a row of vectors for each task, those of one norm's channels
            read.tasks, read.rows, read.stride = _at(norm.tasks), h * w, norm.vectors.stride(1)
        read.scale, read.shift = _rows_at(norm.vectors, SCALE, SHIFT)
        if len(source.ys) > 1:
            read.y_r = _at(source.ys[1])
            read.rscale, read.rshift = _rows_at(source.norms[1].vectors, SCALE, SHIFT)
        read.residual = _at(source.residual)
        return read, Formed(z, mask)


@functools.lru_cache(4096)
def _geometry(conv: Conv, source: Shape) -> abi.GeometryStruct:
    n, c, h, w = source
    _, oc, oh, ow = conv.shape(source)
    return abi.GeometryStruct(
        n, h, w, c, oh, ow, oc, *conv.kernel, *conv.stride, *conv.padding, *conv.dilation, conv.groups
    )


def _half(t: Tensor) -> bool:
    return t.dtype == torch.bfloat16


def _at(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _rows_at(vectors: Tensor, *rows: int) -> list[int]:
    """Return where rows of a (4, C) view begin, without a tensor for each."""
    first, step = vectors.data_ptr(), vectors.stride(0) * vectors.element_size()
    return [first + row * step for row in rows]
