"""The graph's operations by the kernels of kernels/triton.

Forming z, the convolution, the statistics and what the next BatchNorm needs of them are one launch; so are
dy, the input gradient, the ReLU's mask, BatchNorm's two reductions and what the one before needs of them."""

from __future__ import annotations

import dataclasses
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.engine import batchnorm
from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import (
    BackpropPath,
    Coefficients,
    Formed,
    LazyActivation,
    Mask,
    NormTarget,
    NormVectors,
    Pending,
)
from fastbn.engine.triton import tf32, tuning, tuning_table
from fastbn.engine.triton.failures import explained
from fastbn.engine.triton.tuning import LIBRARY, ROLLING
from fastbn.engine.triton.tuning_table import Tuning
from fastbn.graph.activations import IDENTITY
from fastbn.graph.regions import Conv, Shape
from fastbn.kernels.triton import activation as activation_kernel
from fastbn.kernels.triton import batchnorm_pending, conv_rolling, cudnn_passes, gradient_rolling
from fastbn.kernels.triton import conv as taps
from fastbn.kernels.triton import gradient as gradients
from fastbn.kernels.triton.batchnorm_pending import Partial
from fastbn.kernels.triton.prologue import AFFINE, PLAIN, PROJECTION, RESIDUAL, Source


@dataclasses.dataclass(frozen=True)
class TritonWeight:
    """A frozen weight in the kernels' layouts, for the forward and for the input gradient."""

    algorithm: Algorithm
    forward: Tensor
    backward: Tensor


class TritonOperations:
    """The operations by launches."""

    def __init__(self, capability: int, tuning: Tuning | None, precision: str | None) -> None:
        """Take what Triton takes."""
        self.capability, self.precision, self._tuning = capability, precision, tuning

    @property
    def tuning(self) -> Tuning:
        """Return what was measured of GPUs: what was handed in, or what ships."""
        return self._tuning if self._tuning is not None else tuning_table.shipped()

    @property
    def early(self) -> bool:
        """Return whether kernels are launched to begin before the one before them has ended."""
        return self.tuning.begins_early(self.capability)

    @explained
    def convolve(
        self,
        conv: Conv,
        packed: TritonWeight,
        source: Tensor | LazyActivation,
        keep_z: bool,
        keep_mask: bool,
        target: NormTarget | None,
    ) -> tuple[Tensor, Formed | None]:
        x = source if isinstance(source, Tensor) else source.ys[0]
        n, c, h, w = x.shape
        out = conv.shape((n, c, h, w))
        y = _activation(out, x)
        left: Formed | None = None
        if isinstance(source, LazyActivation) and forms_first(
            packed.algorithm, conv, (n, c, h, w), keep_z or keep_mask
        ):
            left = self.form(source, keep_mask)
            assert left.z is not None
            source = left.z
        pending = self._taken(source) if packed.algorithm == ROLLING else None
        read, formed = self._source(source, keep_z, keep_mask)
        precision, moments = self._precision(x), target is not None and target.norm.batch
        device, dependent = self.capability, self.early
        statistics: Partial | None
        if packed.algorithm == ROLLING:
            roll = tuning.roll(conv, (h, w), x.dtype, device, False, self.tuning)
            statistics = conv_rolling.launch(
                read, pending, packed.forward, y, moments, precision, roll, dependent
            )
        elif packed.algorithm == LIBRARY:
            y = F.conv2d(read.x, packed.forward, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            y = y.contiguous(memory_format=torch.channels_last)
            statistics = (
                cudnn_passes.moments(y, y.numel() // conv.channels, conv.channels, dependent)
                if moments
                else None
            )
        else:
            tile = tuning.tile(conv, (h, w), x.dtype, device, False, self.tuning)
            statistics = taps.launch(
                read, packed.forward, y, moments, (n, c, h, w), conv, precision, tile, dependent
            )
        if target is not None:
            target.norm.pending = _forward(target, statistics)
        if left is not None:
            return y, Formed(left.z if keep_z else None, left.mask)
        return y, formed

    @explained
    def ready(self, norm: NormVectors) -> None:
        if norm.pending is not None:
            batchnorm_pending.launch_forward(norm.pending, self.early)
            norm.pending = None

    def _taken(self, source: Tensor | LazyActivation) -> batchnorm_pending.Forward | None:
        """Return what the rolling convolution that reads this source makes ready on its way."""
        if isinstance(source, Tensor):
            return None
        pending: batchnorm_pending.Forward | None = source.norms[0].pending
        if pending is None or (pending.partial is not None and not pending.partial.few):
            return None
        source.norms[0].pending = None
        return pending

    @explained
    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        n, c, h, w = activation.ys[0].shape
        read, formed = self._source(activation, True, keep_mask)
        activation_kernel.launch(read, n * h * w, c, self.early)
        assert formed is not None
        return formed

    @explained
    def gradient(
        self, paths: list[BackpropPath], added: list[Tensor], mask: Mask | None, shape: Shape
    ) -> tuple[Tensor, list[Pending]]:
        like = paths[0].ds if paths else added[0]
        terms = [
            *added,
            *(
                self._library_gradient(path, shape, mask)
                for path in paths
                if path.packed.algorithm == LIBRARY
            ),
        ]
        ours = [path for path in paths if path.packed.algorithm != LIBRARY]
        for path in ours[:-1]:
            terms.append(_activation(shape, like))
            self._gradient(path, gradients.Target(terms[-1]))
        if len(terms) > 2:
            terms = [terms[0], functools.reduce(torch.add, terms[1:])]
        ds = _activation(shape, like)
        target = gradients.Target(ds, tuple(terms))
        if mask is not None:
            vectors = tuple(norm.vectors for norm in mask.norms)
            target = gradients.Target(ds, tuple(terms), mask.saved, mask.function.name, mask.ys, vectors)
        sums = self._gradient(ours[-1] if ours else None, target)
        if mask is None or sums is None:
            return ds, []
        made = enumerate(zip(mask.norms, mask.affine, strict=True))
        return ds, [
            batchnorm_pending.Backward(sums, 1 + i, norm.vectors, affine, norm.batch)
            for i, (norm, affine) in made
        ]

    @explained
    def settle(self, coefficients: Pending) -> Coefficients:
        if not isinstance(coefficients, batchnorm_pending.Backward):
            return coefficients
        c = torch.empty(
            (3, coefficients.affine.shape[1]), dtype=torch.float32, device=coefficients.affine.device
        )
        batchnorm_pending.launch_backward(coefficients, c, self.early)
        return (c[0], c[1], c[2]) if coefficients.batch else (c[0], None, None)

    def _gradient(self, path: BackpropPath | None, target: gradients.Target) -> Partial | None:
        precision, device, dependent = self._precision(target.ds), self.capability, self.early
        _, c, h, w = target.ds.shape
        if path is None:
            return gradients.launch(
                None, None, None, target, precision, tuning.cut(c, c, target.ds.dtype, device), dependent
            )
        up = gradients.Upstream(path.ds, path.y, path.packed.backward)
        if path.packed.algorithm == ROLLING:
            taken = isinstance(path.coefficients, batchnorm_pending.Backward) and path.coefficients.few
            coefficients = path.coefficients if taken else self.settle(path.coefficients)
            roll = tuning.roll(path.conv, (h, w), target.ds.dtype, device, True, self.tuning)
            return gradient_rolling.launch(up, coefficients, target, precision, roll, dependent)
        tile = tuning.tile(path.conv, (h, w), target.ds.dtype, device, True, self.tuning)
        return gradients.launch(
            up, path.conv, self.settle(path.coefficients), target, precision, tile, dependent
        )

    def _library_gradient(self, path: BackpropPath, shape: Shape, mask: Mask | None) -> Tensor:
        conv, dy = path.conv, torch.empty_like(path.ds)
        cudnn_passes.dy(
            path.ds,
            path.y,
            self.settle(path.coefficients),
            dy,
            dy.numel() // conv.channels,
            conv.channels,
            self.early,
        )
        # aten wants the convolution's input, of which it takes the shape and the layout: were it one number
        # expanded, dy would go to NCHW and back
        x = (
            mask.ys[0].view(dy.dtype)
            if mask and mask.ys[0].dtype.itemsize == dy.dtype.itemsize
            else _activation(shape, dy)
        )
        dx, _, _ = torch.ops.aten.convolution_backward(
            dy,
            x,
            path.packed.backward,
            None,
            conv.stride,
            conv.padding,
            conv.dilation,
            False,
            [0, 0],
            conv.groups,
            (True, False, False),
        )
        return dx.contiguous(memory_format=torch.channels_last)

    def _source(
        self, source: Tensor | LazyActivation, keep_z: bool, keep_mask: bool
    ) -> tuple[Source, Formed | None]:
        """Return what a kernel reads. Norms that are still pending are made ready."""
        if isinstance(source, Tensor):
            return Source(PLAIN, IDENTITY.name, source), None
        for norm in source.norms:
            self.ready(norm)
        y, norm = source.ys[0], source.norms[0]
        n, c, h, w = y.shape
        z = _activation((n, c, h, w), y) if keep_z else None
        mask = (
            torch.empty((n * h * w, mask_bytes(c)), dtype=torch.uint8, device=y.device) if keep_mask else None
        )
        form, r, rscale, rshift = AFFINE, source.residual, None, None
        if len(source.ys) > 1:
            form, r, rscale, rshift = PROJECTION, source.ys[1], source.norms[1].scale, source.norms[1].shift
        elif r is not None:
            form = RESIDUAL
        return Source(
            form, source.function.name, y, r, norm.scale, norm.shift, rscale, rshift, z, mask
        ), Formed(z, mask)

    def _precision(self, like: Tensor) -> str:
        """Return how float32 is multiplied: by TF32 where PyTorch's own convolutions would take it; else by
        three of TF32's products for each, of the operands' upper and lower bits, which are float32's but for
        the last bit or two: those outside of the matrix unit would take minutes to compile."""
        if self.precision is not None:
            return self.precision
        if not like.is_cuda or like.dtype != torch.float32:
            return "ieee"
        return "tf32" if tf32.convolutions() else "tf32x3"


def mask_bytes(channels: int) -> int:
    """Return the bytes of one pixel's mask of a bit an element."""
    return -(-channels // 8)


def forms_first(algorithm: Algorithm, conv: Conv, source: Shape, keeps: bool) -> bool:
    """Return whether z is formed by a pass before this convolution reads it, rather than as it loads. keeps:
    z or its mask is asked for."""
    if algorithm in (ROLLING, LIBRARY):
        return algorithm == LIBRARY
    owns = source[1] % 8 == 0 and taps.owns_all(conv, source, conv.shape(source)[2:])
    return (keeps or source[1] % 8 > 0) and not owns


def _forward(target: NormTarget, statistics: Partial | None) -> batchnorm_pending.Forward:
    """Return what the target's vectors are made of."""
    module = target.module
    moves = batchnorm.moves(module)
    counts = module.num_batches_tracked if moves else None
    share = module.momentum if module.momentum is not None or counts is not None else 0.0
    return batchnorm_pending.Forward(
        statistics, target.norm.vectors, module.weight, module.bias, target.conv_bias, module.running_mean,
        module.running_var, counts,
        module.eps, share if moves else 0.0,
    )  # fmt: skip


def _activation(shape: Shape, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
