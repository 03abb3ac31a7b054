"""cudnn_passes: what BatchNorm needs beside a convolution that a library runs: y's statistics, and
dy = c1·ds + c2·y + c0.

Layout   (M, C) rows of pixels.
Traffic  moments reads y; dy reads ds and y and writes dy.
"""

import triton
import triton.language as tl
from torch import Tensor

from .batchnorm_pending import Partial, partial
from .early_launch import begin, options, wait
from .prologue import form_dy

BLOCK_M, LOOP = 64, 8  # rows a tile, tiles a program


@triton.jit
def moments_kernel(
    y_ptr,  # (M, C)
    partial_ptr,  # (programs, 3, C) out: count, mean, M2
    M,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LOOP: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    pid, column = tl.program_id(0), tl.program_id(1)
    offs_c = column * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    first = pid.to(tl.int64) * (BLOCK_M * LOOP)
    y_ptr += first * C
    left = tl.minimum(M - first, BLOCK_M * LOOP).to(tl.int32)  # rows of this program
    m = tl.arange(0, BLOCK_M)
    pivot = tl.zeros((BLOCK_C,), tl.float32)
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    square = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    wait(PDL)
    for i in tl.static_range(LOOP):
        inside = (i * BLOCK_M + m < left)[:, None] & mask_c[None, :]
        y = tl.load(y_ptr + ((i * BLOCK_M + m)[:, None] * C + offs_c[None, :]), mask=inside, other=0.0).to(
            tl.float32
        )
        if i == 0:
            pivot = tl.sum(y, 0) / tl.minimum(left, BLOCK_M)
        d = tl.where(inside, y - pivot[None, :], 0.0)
        total += d
        square += d * d
    s = tl.sum(total, 0)
    place = partial_ptr + pid * (3 * C) + offs_c
    tl.store(place, tl.zeros((BLOCK_C,), tl.float32) + left, mask=mask_c)
    tl.store(place + C, pivot + s / left, mask=mask_c)
    tl.store(
        place + 2 * C,
        tl.maximum(tl.sum(square, 0) - s * (s / left), 0.0, propagate_nan=tl.PropagateNan.ALL),
        mask=mask_c,
    )


@triton.jit
def dy_kernel(
    # (M, C), (C,) fp32; c2, c0 None where statistics are frozen
    ds_ptr,
    y_ptr,
    c1_ptr,
    c2_ptr,
    c0_ptr,
    dy_ptr,  # (M, C) out
    M,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    origin = tl.program_id(0).to(tl.int64) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    inside = (origin + m < M)[:, None] & mask_c[None, :]
    offsets = origin * C + (m[:, None] * C + offs_c[None, :])
    wait(PDL)
    dy = tl.load(ds_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    dy *= tl.load(c1_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
    if c2_ptr is not None:
        y = tl.load(y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        c2 = tl.load(c2_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
        c0 = tl.load(c0_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
        dy = form_dy(dy, y, c2, c0, inside, False)
    tl.store(dy_ptr + offsets, dy.to(dy_ptr.dtype.element_ty), mask=inside)


def _block(channels: int) -> int:
    return min(64, max(16, triton.next_power_of_2(channels)))


def moments(y: Tensor, rows: int, channels: int, dependent: bool) -> Partial:
    """Return y's statistics."""
    block = _block(channels)
    statistics = partial(triton.cdiv(rows, BLOCK_M * LOOP), 3, channels, rows, y)
    moments_kernel[(statistics.tiles, triton.cdiv(channels, block))](
        y_ptr=y, partial_ptr=statistics.values, M=rows, C=channels, BLOCK_M=BLOCK_M, LOOP=LOOP, BLOCK_C=block,
        num_warps=4, **options(dependent),
    )  # fmt: skip
    return statistics


def dy(
    ds: Tensor,
    y: Tensor,
    coefficients: tuple[Tensor, Tensor | None, Tensor | None],
    out: Tensor,
    rows: int,
    channels: int,
    dependent: bool,
) -> None:
    """Write out = c1·ds + c2·y + c0."""
    block = _block(channels)
    c1, c2, c0 = coefficients
    dy_kernel[(triton.cdiv(rows, BLOCK_M), triton.cdiv(channels, block))](
        ds_ptr=ds, y_ptr=y, c1_ptr=c1, c2_ptr=c2, c0_ptr=c0, dy_ptr=out, M=rows, C=channels,
        BLOCK_M=BLOCK_M, BLOCK_C=block,
        num_warps=4, **options(dependent),
    )  # fmt: skip
