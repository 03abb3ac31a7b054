"""conv: y = conv(z) tap by tap, z formed as it is loaded, with what the BatchNorm that reads y needs. Any
shape.

Layout   activations (N, H, W, C); weights (KH·KW·C, OC); masks (N, H, W, C/8).
Traffic  reads what makes z and writes y; writes z, and z's mask, if asked: each pixel by the one tap that
         owns it. A tap's overlap with its neighbours is read again from a cache, and formed again.
Saved    y and the mask: the backward recomputes other ReLUs' masks from y.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .batchnorm_pending import Partial, partial
from .early_launch import begin, options, wait
from .prologue import Source, form, load_affine, pack


@triton.jit
def conv_forward_kernel(
    # (N, H, W, C) y or z; a residual or a projection's y, or None
    x_ptr,
    r_ptr,
    scale_ptr,
    shift_ptr,
    rscale_ptr,
    rshift_ptr,  # (C,) fp32, or None
    w_ptr,  # (KH·KW·C, OC)
    y_ptr,  # (N, OH, OW, OC) out
    z_ptr,
    mask_ptr,  # (N, H, W, C) and (N, H, W, C/8) out, or None
    # (programs, 3, OC) out: count, mean, M2; None: nobody asks
    partial_ptr,
    N,
    H,
    W,
    OH,
    OW,
    C: tl.constexpr,
    OC: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    FORM: tl.constexpr,
    FUNCTION: tl.constexpr,
    PRECISION: tl.constexpr,
    FLAT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """FLAT: taps and channels are one axis, for inputs of very few channels."""
    begin(PDL)
    COLUMNS: tl.constexpr = (OC + BLOCK_N - 1) // BLOCK_N
    # neighbours read the same pixels while they are in a cache
    pid_m, pid_n = tl.program_id(0) // COLUMNS, tl.program_id(0) % COLUMNS
    area = OH * OW
    # the image of the tile's first pixel: offsets are from there
    first = pid_m.to(tl.int64) * BLOCK_M // area
    m = (pid_m.to(tl.int64) * BLOCK_M - first * area).to(tl.int32) + tl.arange(0, BLOCK_M)
    image, q = m // area, m % area
    oh, ow = q // OW, q % OW
    mask_m = first + image < N
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < OC
    x_ptr += first * H * W * C
    if r_ptr is not None:
        r_ptr += first * H * W * C
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    wait(PDL)
    if FLAT:
        for k0 in tl.static_range(0, KH * KW * C, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            tap, c = k // C, k % C
            ih = (oh * SH - PH)[:, None] + (tap // KW * DH)[None, :]
            iw = (ow * SW - PW)[:, None] + (tap % KW * DW)[None, :]
            inside = (
                mask_m[:, None] & (k < KH * KW * C)[None, :] & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
            )
            z = tl.load(x_ptr + ((image[:, None] * H + ih) * W + iw) * C + c[None, :], mask=inside, other=0.0)
            w = tl.load(
                w_ptr + k[:, None] * OC + offs_n[None, :],
                mask=(k < KH * KW * C)[:, None] & mask_n[None, :],
                other=0.0,
            )
            acc = tl.dot(z, w, acc, input_precision=PRECISION)
    else:
        for tap in tl.static_range(KH * KW):
            ih, iw = oh * SH + (tap // KW * DH - PH), ow * SW + (tap % KW * DW - PW)
            inside_m = mask_m & (ih >= 0) & (ih < H) & (iw >= 0) & (iw < W)
            pixel = (image * H + ih) * W + iw
            for k0 in range(0, C, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                mask_k = k < C
                inside = inside_m[:, None] & mask_k[None, :]
                offsets = pixel[:, None] * C + k[None, :]
                scale, shift, rscale = load_affine(
                    scale_ptr, shift_ptr, rscale_ptr, rshift_ptr, k, mask_k, FORM
                )
                z = form(x_ptr, r_ptr, offsets, inside, scale, shift, rscale, FORM, FUNCTION)
                # the tap that owns these pixels (a constexpr's name can't be given again, so its offsets have
                # none)
                if (
                    (tap // KW * DH >= PH)
                    & (tap // KW * DH < PH + SH)
                    & (tap % KW * DW >= PW)
                    & (tap % KW * DW < PW + SW)
                ):
                    if z_ptr is not None:
                        tl.store(z_ptr + first * H * W * C + offsets, z, mask=inside & (pid_n == 0))
                    if mask_ptr is not None:
                        byte = k0 // 8 + tl.arange(0, BLOCK_K // 8)
                        at = mask_ptr + first * H * W * (C // 8) + pixel[:, None] * (C // 8) + byte[None, :]
                        tl.store(
                            at,
                            pack(z, BLOCK_M, BLOCK_K),
                            mask=inside_m[:, None] & (byte < C // 8)[None, :] & (pid_n == 0),
                        )
                w = tl.load(
                    w_ptr + (tap * C + k)[:, None] * OC + offs_n[None, :],
                    mask=mask_k[:, None] & mask_n[None, :],
                    other=0.0,
                )
                acc = tl.dot(z, w, acc, input_precision=PRECISION)
    y = acc.to(y_ptr.dtype.element_ty)
    out = pid_m.to(tl.int64) * BLOCK_M * OC
    tl.store(
        y_ptr + out + tl.arange(0, BLOCK_M)[:, None] * OC + offs_n[None, :],
        y,
        mask=mask_m[:, None] & mask_n[None, :],
    )
    if partial_ptr is not None:
        stored = y.to(tl.float32)
        count = tl.sum(mask_m.to(tl.float32), 0)
        mean = tl.sum(tl.where(mask_m[:, None], stored, 0.0), 0) / count
        d = tl.where(mask_m[:, None], stored - mean[None, :], 0.0)
        place = partial_ptr + pid_m * (3 * OC) + offs_n
        tl.store(place, tl.zeros((BLOCK_N,), tl.float32) + count, mask=mask_n)
        tl.store(place + OC, mean, mask=mask_n)
        tl.store(place + 2 * OC, tl.sum(d * d, 0), mask=mask_n)


@dataclasses.dataclass(frozen=True)
class Tile:
    """A configuration of the kernels that take any shape."""

    block_m: int  # pixels
    block_n: int  # channels written
    block_k: int  # channels read at a time
    warps: int
    stages: int


def launch(
    source: Source, weight: Tensor, y: Tensor, moments: bool, shape: tuple[int, int, int, int], conv: Any,
    precision: str, tile: Tile,
    dependent: bool,
) -> Partial | None:  # fmt: skip
    """Write y = conv(source); return y's statistics if asked. shape: the source's (N, C, H, W); conv: its
    kernel, stride, padding and dilation as pairs."""
    n, c, h, w = shape
    _, oc, oh, ow = y.shape
    # channels that are formed beforehand: the sum's order, and so its bits, depend on the shape alone
    flat = c < 16 and c % 8 > 0
    tiles, columns = triton.cdiv(n * oh * ow, tile.block_m), triton.cdiv(oc, tile.block_n)
    statistics = partial(tiles, 3, oc, n * oh * ow, y) if moments else None
    conv_forward_kernel[(tiles * columns,)](
        **source.arguments(), w_ptr=weight, y_ptr=y, partial_ptr=statistics and statistics.values,
        N=n, H=h, W=w, OH=oh, OW=ow, C=c, OC=oc, **geometry(conv), PRECISION=precision, FLAT=flat,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, num_warps=tile.warps,
        num_stages=tile.stages,
        **options(dependent),
    )  # fmt: skip
    return statistics


def geometry(conv: Any) -> dict[str, int]:
    """Return a convolution's constants, as the kernels name them."""
    pairs = {"K": conv.kernel, "S": conv.stride, "P": conv.padding, "D": conv.dilation}
    return {letter + axis: pair[i] for letter, pair in pairs.items() for i, axis in enumerate("HW")}


def owns_all(conv: Any, shape: tuple[int, int, int, int], out: tuple[int, int]) -> bool:
    """Return whether every pixel of the source is some output's own: z can be written as it is formed."""
    taps = zip(conv.kernel, conv.stride, conv.padding, conv.dilation, shape[2:], out, strict=True)
    return all(
        {k * d - p for k in range(kernel)} >= set(range(s)) and outs * s >= size
        for kernel, s, p, d, size, outs in taps
    )
