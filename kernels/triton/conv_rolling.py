"""conv_rolling: y = conv(z), 3×3 at stride 1 with padding 1 and few channels, z formed once for three kernel
rows, with what the BatchNorm that reads y needs.

Rows roll and pixels pair as rolling.py says.

Layout   activations (N, H, W, C); weights (3 kernel rows, loads, K, N); masks (N, H, W, C/8).
Traffic  reads what makes z (a band's two outer rows twice), writes y; writes z, and z's mask, if asked: each
once.
Saved    y and the mask.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .batchnorm_pending import NOTHING, Forward, Partial, partial
from .batchnorm_stats import UNSPECIALISED, settle_forward
from .early_launch import begin, options, wait
from .prologue import Source, form, pack
from .rolling import (
    Roll,
    cut,
    load_kept,
    multiply,
    pairing,
    place,
    read_at,
    real,
    real_outputs,
    tile_channels,
)


@triton.jit(**UNSPECIALISED)
def conv_rolling_forward_kernel(
    # (N, H, W, C) y or z; a residual or a projection's y, or None
    x_ptr,
    r_ptr,
    scale_ptr,
    shift_ptr,
    rscale_ptr,
    rshift_ptr,  # (C,) fp32, or None
    w_ptr,  # (3, loads, K, N)
    y_ptr,  # (N, H, W, C) out
    z_ptr,
    mask_ptr,  # (N, H, W, C) and (N, H, W, C/8) out, or None
    # (programs, 3, C) out: count, mean, M2; None: nobody asks
    partial_ptr,
    # the source's own BatchNorm where it is DUE: made ready on the way, see settle
    due_ptr,
    due_tiles,
    due_rows,
    vectors_ptr,
    stride,
    weight_ptr,
    bias_ptr,
    conv_bias_ptr,
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    eps,
    share,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    FORM: tl.constexpr,
    FUNCTION: tl.constexpr,
    DUE: tl.constexpr,
    MOVES: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
    PAIR: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    EVEN: tl.constexpr,
    KEEP: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    pid = tl.program_id(0)
    LOADS: tl.constexpr = 3 if PAIR == 1 else 1
    K: tl.constexpr = C if PAIR == 1 else 4 * C
    OUT: tl.constexpr = PAIR * C
    top, first, image, column = place(pid, H, W, PAIR, IMAGES, ROWS, STRIP, BLOCK_M)
    k = tl.arange(0, K)
    n = tl.arange(0, OUT)
    mask_m = real(image, first, N, IMAGES, EVEN)
    mask_y = real_outputs(mask_m, column, n, C, W, EVEN)
    base = first.to(tl.int64) * (H * W * C)
    x_ptr += base
    y_ptr += base
    if r_ptr is not None:
        r_ptr += base
    if z_ptr is not None:
        z_ptr += base
    if mask_ptr is not None:
        mask_ptr += first.to(tl.int64) * (H * W * (C // 8))
    # of the band's first row, from the first image on
    pixel = (image * H + top) * W + column
    kept_weights = load_kept(w_ptr, K, OUT, LOADS, KEEP)
    wait(PDL)
    scale, shift, rscale = 0.0, 0.0, 0.0
    if DUE:
        offs_c = tl.arange(0, C)
        own_scale, own_shift = settle_forward(
            due_ptr, due_tiles, due_rows, vectors_ptr, stride, weight_ptr, bias_ptr, conv_bias_ptr,
            running_mean_ptr, running_var_ptr, batches_ptr, eps, share, C, offs_c, offs_c < C,
            pid == 0, pid == 0, MOVES, CUMULATIVE, True, C, BLOCK_T,
        )  # fmt: skip
        scale = tile_channels(own_scale, C, K)
        shift = tile_channels(own_shift, C, K)
    elif FORM > 0:
        scale = tl.load(scale_ptr + k % C)[None, :]
        shift = tl.load(shift_ptr + k % C)[None, :]
    if FORM == 3:
        rscale = tl.load(rscale_ptr + k % C)[None, :]
        shift += tl.load(rshift_ptr + k % C)[None, :]
    acc0 = tl.zeros((BLOCK_M, OUT), tl.float32)
    acc1 = tl.zeros((BLOCK_M, OUT), tl.float32)
    acc2 = tl.zeros((BLOCK_M, OUT), tl.float32)
    # Σ(y − pivot) and Σ(y − pivot)², by place in the tile
    total = tl.zeros((BLOCK_M, OUT), tl.float32)
    square = tl.zeros((BLOCK_M, OUT), tl.float32)
    pivot = tl.zeros((OUT,), tl.float32)
    across = tl.sum(mask_y.to(tl.float32), 0)  # pixels a row
    for r in tl.static_range(ROWS + 2):
        row = top + r - 1
        acc0 = tl.zeros((BLOCK_M, OUT), tl.float32)
        for load in tl.static_range(LOADS):
            inside, offsets = read_at(mask_m, pixel, column, k, row, r, load, H, W, C, PAIR, ROWS, EVEN)
            z = form(x_ptr, r_ptr, offsets, inside, scale, shift, rscale, FORM, FUNCTION)
            # a row and columns of this program's own
            if (r >= 1) & (r <= ROWS) & ((LOADS == 1) | (load == 1)):
                kept_here = inside & (k >= C)[None, :] & (k < 3 * C)[None, :] if PAIR == 2 else inside
                if z_ptr is not None:
                    tl.store(z_ptr + offsets, z, mask=kept_here)
                if mask_ptr is not None:
                    byte = tl.arange(0, K // 8)
                    there = column[:, None] + byte[None, :] // (C // 8) + (load - 1)
                    inner = (byte >= C // 8) & (byte < 3 * (C // 8)) if PAIR == 2 else byte >= 0
                    bits = mask_ptr + ((pixel + (r - 1) * W + (load - 1))[:, None] * (C // 8) + byte[None, :])
                    tl.store(
                        bits,
                        pack(z, BLOCK_M, K),
                        mask=mask_m[:, None] & inner[None, :] & (there < W) & (row < H),
                    )
            acc0, acc1, acc2 = multiply(
                z, w_ptr, kept_weights, acc0, acc1, acc2, r, load, ROWS, LOADS, K, OUT, KEEP, PRECISION
            )
        if r >= 2:
            y = acc2.to(y_ptr.dtype.element_ty)
            kept = mask_y if EVEN else mask_y & (row - 1 < H)
            tl.store(y_ptr + (pixel + (r - 2) * W)[:, None] * C + n[None, :], y, mask=kept)
            if partial_ptr is not None:
                stored = y.to(tl.float32)
                if r == 2:
                    pivot = tl.sum(tl.where(kept, stored, 0.0), 0) / tl.maximum(across, 1.0)
                d = tl.where(kept, stored - pivot[None, :], 0.0)
                total += d
                square += d * d
        acc2 = acc1
        acc1 = acc0
    if partial_ptr is not None:
        count = across * tl.minimum(H - top, ROWS)
        s = tl.sum(total, 0)
        mean = s / tl.maximum(count, 1.0)
        m2 = tl.maximum(tl.sum(square, 0) - s * mean, 0.0, propagate_nan=tl.PropagateNan.ALL)
        mean += pivot
        # the pair's two pixels are of the same channels
        if PAIR == 2:
            counts, means = tl.reshape(count, (2, C)), tl.reshape(mean, (2, C))
            count = tl.sum(counts, 0)
            left = tl.sum(tl.where(tl.arange(0, 2)[:, None] == 0, means, 0.0), 0)
            mean = left + tl.sum(counts * (means - left[None, :]), 0) / count
            d = means - mean[None, :]
            m2 = tl.sum(tl.reshape(m2, (2, C)), 0) + tl.sum(counts * d * d, 0)
        mine = partial_ptr + pid * (3 * C) + tl.arange(0, C)
        tl.store(mine, count)
        tl.store(mine + C, mean)
        tl.store(mine + 2 * C, m2)


def launch(
    source: Source,
    due: Forward | None,
    weight: Tensor,
    y: Tensor,
    moments: bool,
    precision: str,
    roll: Roll,
    dependent: bool,
) -> Partial | None:
    """Write y = conv(source), as packed by pack_weight; return y's statistics if asked. due: the source's
    BatchNorm, if it is not yet ready."""
    n, c, h, w = y.shape
    pair = pairing(c)
    tiles, constants = cut(n, h, w, pair, roll)
    statistics = partial(tiles, 3, c, n * h * w, y) if moments else None
    conv_rolling_forward_kernel[(tiles,)](
        **source.arguments(), w_ptr=weight, y_ptr=y, partial_ptr=statistics and statistics.values,
        **(due.arguments() if due else NOTHING), DUE=due is not None,
        N=n, H=h, W=w, C=c, PRECISION=precision, **constants, num_warps=roll.warps, num_stages=1,
        **options(dependent),
    )  # fmt: skip
    return statistics
