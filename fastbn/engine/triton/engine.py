"""The Triton engine: the graph's operations by the kernels of kernels/, on CUDA from compute capability 8.0
on; with TRITON_INTERPRET=1 on CPU tensors, to check them.

Forming z, the convolution, the statistics and what the next BatchNorm needs of them are one launch; so are
dy, the input gradient, the ReLU's mask, BatchNorm's two reductions and what the one before needs of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.engine import batchnorm
from fastbn.engine.executor import Graphs
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
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv, Shape
from fastbn.kernels.triton import (
    activation as activation_kernel,
)
from fastbn.kernels.triton import (
    batchnorm_stats,
    cudnn_passes,
    gradient_rolling,
)
from fastbn.kernels.triton import conv as taps
from fastbn.kernels.triton import conv_rolling as rolling
from fastbn.kernels.triton import gradient as gradients
from fastbn.kernels.triton.batchnorm_stats import Partial
from fastbn.kernels.triton.prologue import AFFINE, PLAIN, PROJECTION, RESIDUAL, Source


@dataclasses.dataclass(frozen=True)
class TritonWeight:
    """A frozen weight in the kernels' layouts, for the forward and for the input gradient."""

    algorithm: str
    forward: Tensor
    backward: Tensor


class Triton:
    name = "triton"
    tasks = False
    halves = False
    functions = frozenset({IDENTITY.name, RELU.name})
    groups = False  # its kernels merge and use the statistics of a launch in the next one

    def __init__(self, capability: int = 0, by: str | None = None) -> None:
        """capability: of the GPU whose choices it takes, as choose.capability gives it; 0 for the
        interpreter.
        by: the one algorithm that carries every convolution out, instead of the table's or the rule's."""
        self._capability, self._by = capability, by

    @property
    def _dependent(self) -> bool:
        return tuning_table.dependent(self._capability)

    def supports(self, conv: Conv) -> str | None:
        return None

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        return dtype in (torch.float32, torch.float16, torch.bfloat16)

    def algorithm(self, conv: Conv, size: tuple[int, int] | None = None) -> str:
        return self._by or tuning.algorithm(conv, size, self._capability)

    def choices(self, convs: Sequence[Conv], shapes: dict[int, Shape]) -> list[str]:
        return [self.algorithm(conv, shapes[conv.source][2:]) for conv in convs]

    def mask_bytes(self, channels: int) -> int:
        return -(-channels // 8)

    def forms_first(self, conv: Conv, source: Shape, keeps: bool) -> bool:
        return _forms_first(self.algorithm(conv, source[2:]), conv, source, keeps)

    def aside(self, conv: Conv, size: tuple[int, int]) -> bool:
        return self.algorithm(conv, size) == LIBRARY

    def replays(self) -> Graphs:
        return Graphs()

    def pack(
        self, conv: Conv, weight: Tensor, dtype: torch.dtype, gradients: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        by: str | None = None,
    ) -> TritonWeight:  # fmt: skip
        w, v = weight.detach().to(dtype), weight.detach().to(gradients or dtype)  # (C, C_in, KH, KW)
        algorithm = by or self.algorithm(conv, size)
        if algorithm == ROLLING:
            w, v = rolling.pack_weight(w), rolling.pack_weight(v.flip(2, 3).transpose(0, 1))
        elif algorithm == LIBRARY:
            w, v = (t.contiguous(memory_format=torch.channels_last) for t in (w, v))
        else:
            w, v = w.permute(2, 3, 1, 0).contiguous(), v.permute(2, 3, 0, 1).contiguous()
        if self._dependent:
            # a launch that awaits the packing, which a kernel that begins early would not
            # (kernels/triton/early_launch.py)
            w.new_zeros(1)
        return TritonWeight(algorithm, w, v)

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
        if isinstance(source, LazyActivation) and _forms_first(
            packed.algorithm, conv, (n, c, h, w), keep_z or keep_mask
        ):
            left = self.form(source, keep_mask)
            assert left.z is not None
            source = left.z
        pending = self._taken(source) if packed.algorithm == ROLLING else None
        read, formed = self._source(source, keep_z, keep_mask)
        precision, moments = _precision(x), target is not None and target.norm.batch
        device, dependent = self._capability, self._dependent
        found: Partial | None
        if packed.algorithm == ROLLING:
            roll = tuning.roll(conv, (h, w), x.dtype, device, False)
            found = rolling.launch(read, pending, packed.forward, y, moments, precision, roll, dependent)
        elif packed.algorithm == LIBRARY:
            y = F.conv2d(read.x, packed.forward, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            y = y.contiguous(memory_format=torch.channels_last)
            found = (
                cudnn_passes.moments(y, y.numel() // conv.channels, conv.channels, dependent)
                if moments
                else None
            )
        else:
            tile = tuning.tile(conv, (h, w), x.dtype, device, False)
            found = taps.launch(
                read, packed.forward, y, moments, (n, c, h, w), conv, precision, tile, dependent
            )
        if target is not None:
            target.norm.pending = _forward(target, found)
        if left is not None:
            return y, Formed(left.z if keep_z else None, left.mask)
        return y, formed

    @explained
    def ready(self, norm: NormVectors) -> None:
        if norm.pending is not None:
            batchnorm_stats.launch_forward(norm.pending, self._dependent)
            norm.pending = None

    def _taken(self, source: Tensor | LazyActivation) -> batchnorm_stats.Forward | None:
        """What the rolling convolution that reads this source makes ready on its way."""
        if isinstance(source, Tensor):
            return None
        pending: batchnorm_stats.Forward | None = source.norms[0].pending
        if pending is None or (pending.partial is not None and not pending.partial.few):
            return None
        source.norms[0].pending = None
        return pending

    @explained
    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        n, c, h, w = activation.ys[0].shape
        read, formed = self._source(activation, True, keep_mask)
        activation_kernel.launch(read, n * h * w, c, self._dependent)
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
            target = gradients.Target(ds, tuple(terms), mask.saved, mask.function == RELU, mask.ys, vectors)
        sums = self._gradient(ours[-1] if ours else None, target)
        if mask is None or sums is None:
            return ds, []
        made = enumerate(zip(mask.norms, mask.affine, strict=True))
        return ds, [
            batchnorm_stats.Backward(sums, 1 + i, norm.vectors, affine, norm.batch)
            for i, (norm, affine) in made
        ]

    @explained
    def settle(self, coefficients: Pending) -> Coefficients:
        if not isinstance(coefficients, batchnorm_stats.Backward):
            return coefficients
        c = torch.empty(
            (3, coefficients.affine.shape[1]), dtype=torch.float32, device=coefficients.affine.device
        )
        batchnorm_stats.launch_backward(coefficients, c, self._dependent)
        return (c[0], c[1], c[2]) if coefficients.batch else (c[0], None, None)

    def _gradient(self, path: BackpropPath | None, target: gradients.Target) -> Partial | None:
        precision, device, dependent = _precision(target.ds), self._capability, self._dependent
        _, c, h, w = target.ds.shape
        if path is None:
            return gradients.launch(
                None, None, None, target, precision, tuning.cut(c, c, target.ds.dtype, device), dependent
            )
        up = gradients.Upstream(path.ds, path.y, path.packed.backward)
        if path.packed.algorithm == ROLLING:
            taken = isinstance(path.coefficients, batchnorm_stats.Backward) and path.coefficients.few
            coefficients = path.coefficients if taken else self.settle(path.coefficients)
            roll = tuning.roll(path.conv, (h, w), target.ds.dtype, device, True)
            return gradient_rolling.launch(up, coefficients, target, precision, roll, dependent)
        tile = tuning.tile(path.conv, (h, w), target.ds.dtype, device, True)
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
            self._dependent,
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
        """What a kernel reads. Norms that are still pending are made ready."""
        if isinstance(source, Tensor):
            return Source(PLAIN, False, source), None
        for norm in source.norms:
            self.ready(norm)
        y, norm = source.ys[0], source.norms[0]
        n, c, h, w = y.shape
        z = _activation((n, c, h, w), y) if keep_z else None
        mask = (
            torch.empty((n * h * w, self.mask_bytes(c)), dtype=torch.uint8, device=y.device)
            if keep_mask
            else None
        )
        form, r, rscale, rshift = AFFINE, source.residual, None, None
        if len(source.ys) > 1:
            form, r, rscale, rshift = PROJECTION, source.ys[1], source.norms[1].scale, source.norms[1].shift
        elif r is not None:
            form = RESIDUAL
        return Source(
            form, source.function == RELU, y, r, norm.scale, norm.shift, rscale, rshift, z, mask
        ), Formed(z, mask)


def _forms_first(algorithm: str, conv: Conv, source: Shape, keeps: bool) -> bool:
    if algorithm in (ROLLING, LIBRARY):
        return algorithm == LIBRARY
    owns = source[1] % 8 == 0 and taps.owns_all(conv, source, conv.shape(source)[2:])
    return (keeps or source[1] % 8 > 0) and not owns


def _forward(target: NormTarget, found: Partial | None) -> batchnorm_stats.Forward:
    """What the target's vectors are made of."""
    module = target.module
    moves = batchnorm.moves(module)
    counts = module.num_batches_tracked if moves else None
    share = module.momentum if module.momentum is not None or counts is not None else 0.0
    return batchnorm_stats.Forward(
        found, target.norm.vectors, module.weight, module.bias, target.conv_bias, module.running_mean,
        module.running_var, counts,
        module.eps, share if moves else 0.0,
    )  # fmt: skip


def _activation(shape: Shape, like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _precision(like: Tensor) -> str:
    """Of float32's products: TF32 where PyTorch's own convolutions would take it; else three of TF32's for
    each, of the operands' upper and lower bits, which are float32's but for the last bit or two: those
    outside of the matrix unit would take minutes to compile."""
    if not like.is_cuda or like.dtype != torch.float32:
        return "ieee"
    return "tf32" if tf32.convolutions() else "tf32x3"
