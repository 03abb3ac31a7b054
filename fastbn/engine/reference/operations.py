"""The graph's operations as plain channels-last tensor code. The oracle for the others;
float64 too.

    forward    n = scale·y + shift          z = function(n [+ residual | + rscale·y_r + rshift])
    backward   ds = dz · function'(n)       dβ = Σ ds        dγ = r·Σ ds·(y − μ)
               dy = c1·ds + c2·y + c0       c1 = γ·r         c2 = −γ·r²·dγ/M         c0 = −γ·r·dβ/M − c2·μ

It saves raw convolution outputs; for a function after an addition also one byte an element where its
derivative has two values, else n itself. For a function straight after a BatchNorm n is recomputed from y. No
weight gradient is ever computed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.engine import batchnorm
from fastbn.engine.interface import (
    BackpropPath,
    Coefficients,
    Formed,
    LazyActivation,
    Mask,
    NormTarget,
    NormVectors,
    Statistics,
)
from fastbn.graph import pointwise
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv, Shape

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


class ReferenceOperations:
    """The operations by tensor code."""

    def ready(self, norm: NormVectors) -> None:
        pass  # it is

    def settle(self, coefficients: Coefficients) -> Coefficients:
        return coefficients

    def convolve(
        self,
        conv: Conv,
        packed: Tensor,
        source: Tensor | LazyActivation,
        keep_z: bool,
        keep_mask: bool,
        target: NormTarget | None,
    ) -> tuple[Tensor, Formed | None]:
        formed = self.form(source, keep_mask) if isinstance(source, LazyActivation) else None
        z = formed.z if formed else source
        assert isinstance(z, Tensor)
        y = z
        if not conv.copies:
            y = F.conv2d(z, packed, None, conv.stride, conv.padding, conv.dilation, conv.groups)
            y = y.contiguous(memory_format=torch.channels_last)
        if formed and not keep_z:
            formed = Formed(None, formed.mask)
        if target is not None:
            batchnorm.normalise(
                _statistics(y) if target.norm.batch else None, target, y.numel() // conv.channels
            )
        return y, formed

    def form(self, activation: LazyActivation, keep_mask: bool) -> Formed:
        z = _affine(activation.ys[0], activation.norms[0])
        for y, norm in zip(activation.ys[1:], activation.norms[1:], strict=True):
            z += _affine(y, norm)
        if activation.residual is not None:
            z += activation.residual
        dtype = activation.ys[0].dtype
        mask = pointwise.kept(activation.function, z.to(dtype), dtype) if keep_mask else None
        return Formed(pointwise.forward(activation.function, z).to(dtype), mask)

    def gradient(
        self, paths: list[BackpropPath], added: list[Tensor], mask: Mask | None, shape: Shape
    ) -> tuple[Tensor, list[Coefficients]]:
        dz: Tensor | None = None
        for path in paths:
            dx = _input_gradient(path, shape)
            dz = dx if dz is None else dz.add_(dx)
        ours = dz is not None  # what came from outside is not ours to write on
        for term in added:
            dz = term if dz is None else dz.add_(term) if ours else dz + term
            ours = ours or dz is not term
        assert dz is not None
        if mask is None:
            return dz, []
        ds = _masked(dz, mask, ours)
        rows = ds.numel() // shape[1]
        made = zip(mask.ys, mask.norms, mask.affine, strict=True)
        return ds, [
            batchnorm.finish(_sums(ds, y, norm.mean), norm, rows, affine, mask.group)
            for y, norm, affine in made
        ]


def _wide(t: Tensor) -> Tensor:
    """Return the tensor in the arithmetic's width: half precision becomes float32."""
    return t if t.dtype == torch.float64 else t.float()


def _rows(t: Tensor) -> Tensor:
    """Return (N, C, H, W) in channels-last memory as (M, C) in the arithmetic's width, without a copy."""
    return _wide(t).permute(0, 2, 3, 1).reshape(-1, t.shape[1])


def _affine(y: Tensor, norm: NormVectors) -> Tensor:
    """Return scale·y + shift by channel, of each sample's own task where there are tasks, in float32 or
    float64."""
    n, c, h, w = y.shape
    rows, scale, shift = _rows(y), norm.scale, norm.shift
    if norm.tasks is not None:
        rows, scale, shift = rows.view(n, h * w, c), scale[norm.tasks, None], shift[norm.tasks, None]
    return torch.addcmul(shift, rows, scale).view(n, h, w, c).permute(0, 3, 1, 2)


def _statistics(y: Tensor) -> Statistics:
    """Return the mean and the biased variance. torch's one pass gives Σ(y − a)²/M about a mean a of its own,
    rounded where |mean| is large; Σ(y − a)²/M − (a − μ)² is the variance about the better μ (Chan, Golub,
    LeVeque 1983). Good at |mean| = 1000·std."""
    mean = _rows(y).mean(0)
    about, var = torch.batch_norm_update_stats(_wide(y), None, None, 0.0)
    return Statistics(mean, (var - (about - mean).square()).clamp_(min=0))


def _sums(ds: Tensor, y: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ ds and Σ ds·(y − μ), in one pass of torch's own reduction."""
    one = torch.ones_like(mean)
    _, product, total = torch.ops.aten.native_batch_norm_backward(
        _wide(ds), _wide(y), one, None, None, mean, one, True, 0.0, (False, True, True)
    )
    return total, product


def _masked(dz: Tensor, mask: Mask, ours: bool) -> Tensor:
    """Return the gradient of n, dz · function'(n); written over dz if that is ours."""
    function = mask.function
    if function == IDENTITY:
        return dz
    if mask.saved is not None and function.bit:
        formulas = pointwise.FORMULAS[function.name]
        outside = function.slope if formulas.outside is None else formulas.outside
        if outside:
            return torch.where(mask.saved, dz, dz * outside)
        bits = BITS[dz.dtype]  # as integers 0·x is 0 whatever x is; masked_fill takes twenty times as long
        ds = dz if ours else dz.clone()
        ds.view(bits).mul_(mask.saved)
        return ds if formulas.inside == 1 else ds.mul_(formulas.inside)
    if mask.saved is not None:
        return pointwise.backward(function, _wide(dz), _wide(mask.saved)).to(dz.dtype)
    n = _affine(mask.ys[0], mask.norms[0])
    if function == RELU:
        return pointwise.backward(function, dz, n.to(mask.ys[0].dtype).to(dz.dtype))
    return pointwise.backward(function, _wide(dz), n).to(dz.dtype)


def _input_gradient(path: BackpropPath, shape: Shape) -> Tensor:
    """Return convᵀ(c1·ds + c2·y + c0), shaped like the convolution's source."""
    conv, (c1, c2, c0) = path.conv, path.coefficients
    n, c, h, w = path.ds.shape
    if c2 is None or c0 is None:
        dy = _rows(path.ds) * c1
    else:
        dy = torch.addcmul(c0, _rows(path.ds), c1).addcmul_(_rows(path.y), c2)
    dy = dy.view(n, h, w, c).permute(0, 3, 1, 2).to(path.ds.dtype)
    reach = [
        (extent - 1) * s - 2 * p + d * (k - 1) + 1
        for extent, s, p, d, k in zip(
            (h, w), conv.stride, conv.padding, conv.dilation, conv.kernel, strict=True
        )
    ]
    # rows that a stride skipped at the end
    ragged = [size - r for size, r in zip(shape[2:], reach, strict=True)]
    dx = F.conv_transpose2d(
        dy, path.packed, None, conv.stride, conv.padding, ragged, conv.groups, conv.dilation
    )
    return dx.contiguous(memory_format=torch.channels_last)
