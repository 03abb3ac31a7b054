"""gradient_rolling: a value's gradient through a 3×3 convolution at stride 1 with padding 1 and few channels,

    ds = (convᵀ(dy) + Σ added)·mask        dy = c1·ds + c2·y + c0, formed once for three kernel rows,

and what ends the gradients of the BatchNorms that made the value.

Rows roll and pixels pair as rolling.py says, with the flipped, transposed weight.

Layout   activations (N, H, W, channels), OC read and C written; weights (3 kernel rows, loads, K, N); masks
(N, H, W, C/8).
Traffic  reads ds and y of the convolution (a band's two outer rows twice), the added terms, and the mask or
         the y that it is recomputed from; writes ds.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .batchnorm_pending import Backward, Partial
from .batchnorm_stats import settle_backward
from .early_launch import begin, options, wait
from .gradient import Coefficients, Target, Upstream, close
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

NOTHING: dict[str, Any] = dict.fromkeys(("due_ptr", "due_vectors_ptr", "affine_ptr"))
NOTHING |= {
    "due_tiles": 0,
    "due_row": 0,
    "due_rows": 0.0,
    "due_stride": 0,
    "affine_stride": 0,
    "KINDS": 0,
    "BLOCK_T": 16,
}


@triton.jit
def fold_channels(tile, PAIR: tl.constexpr, C: tl.constexpr):
    """Return the sums by channel: (M, PAIR·C) -> (C,)."""
    return tl.sum(tl.reshape(tl.sum(tile, 0), (PAIR, C)), 0)


@triton.jit(do_not_specialize=["due_tiles"])
def gradient_rolling_kernel(
    # (N, H, W, C) ds and y, (C,) fp32; c2, c0 None where statistics are frozen
    up_ptr,
    up_y_ptr,
    c1_ptr,
    c2_ptr,
    c0_ptr,
    w_ptr,  # (3, loads, K, N)
    added_ptr,
    added_2_ptr,  # (N, H, W, C), or None
    mask_ptr,
    y_ptr,
    y_r_ptr,  # (N, H, W, C/8), (N, H, W, C), or None
    ds_ptr,  # (N, H, W, C) out
    # (programs, YS + 1, C) out: Σ ds, then Σ ds·(y − μ) of each y; or None
    partial_ptr,
    vectors_ptr,
    vectors_r_ptr,
    stride,  # rows of (4, C) of each y's BatchNorm
    # the convolution's own BatchNorm where its gradient is DUE: ended on the way
    due_ptr,
    due_tiles,
    due_row,
    due_rows,
    due_vectors_ptr,
    due_stride,
    affine_ptr,
    affine_stride,
    N,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    MASK: tl.constexpr,
    YS: tl.constexpr,
    DUE: tl.constexpr,
    BATCH: tl.constexpr,
    KINDS: tl.constexpr,
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
    base = first.to(tl.int64) * (H * W * C)
    up_ptr += base
    pixel = (image * H + top) * W + column
    c2, c0 = 0.0, 0.0
    if BATCH:
        up_y_ptr += base
    kept_weights = load_kept(w_ptr, K, OUT, LOADS, KEEP)
    wait(PDL)
    if DUE:
        offs_c = tl.arange(0, C)
        own1, own2, own0 = settle_backward(
            due_ptr, due_tiles, due_row, due_rows, due_vectors_ptr, due_stride, affine_ptr, affine_stride,
            C, offs_c, offs_c < C, pid == 0, BATCH, KINDS, C, BLOCK_T,
        )  # fmt: skip
        c1 = tile_channels(own1, C, K)
        if BATCH:
            c2 = tile_channels(own2, C, K)
            c0 = tile_channels(own0, C, K)
    else:
        c1 = tl.load(c1_ptr + k % C)[None, :]
        if BATCH:
            c2 = tl.load(c2_ptr + k % C)[None, :]
            c0 = tl.load(c0_ptr + k % C)[None, :]
    scale, shift, mean, mean_r = 0.0, 0.0, 0.0, 0.0
    if YS > 0:
        mean = tl.load(vectors_ptr + n % C)[None, :]
    if YS == 2:
        mean_r = tl.load(vectors_r_ptr + n % C)[None, :]
    if MASK == 2:
        scale = tl.load(vectors_ptr + 2 * stride + n % C)[None, :]
        shift = tl.load(vectors_ptr + 3 * stride + n % C)[None, :]
    byte = tl.arange(0, OUT // 8)
    mask_m = real(image, first, N, IMAGES, EVEN)
    mask_out = real_outputs(mask_m, column, n, C, W, EVEN)
    mask_byte = real_outputs(mask_m, column, byte, C // 8, W, EVEN)
    acc0 = tl.zeros((BLOCK_M, OUT), tl.float32)
    acc1 = tl.zeros((BLOCK_M, OUT), tl.float32)
    acc2 = tl.zeros((BLOCK_M, OUT), tl.float32)
    total = tl.zeros((BLOCK_M, OUT), tl.float32)
    products = tl.zeros((BLOCK_M, OUT), tl.float32)
    products_r = tl.zeros((BLOCK_M, OUT), tl.float32)
    for r in tl.static_range(ROWS + 2):
        row = top + r - 1
        acc0 = tl.zeros((BLOCK_M, OUT), tl.float32)
        for load in tl.static_range(LOADS):
            inside, offsets = read_at(mask_m, pixel, column, k, row, r, load, H, W, C, PAIR, ROWS, EVEN)
            dy = tl.load(up_ptr + offsets, mask=inside, other=0.0).to(tl.float32) * c1
            if BATCH:
                y = tl.load(up_y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                # form_dy written out: through it one spills 64 bytes in place of 56 on sm_120, in fp16
                dy = tl.where(inside, dy + (c2 * y + c0), 0.0)
            acc0, acc1, acc2 = multiply(
                dy.to(w_ptr.dtype.element_ty), w_ptr, kept_weights, acc0, acc1, acc2, r, load, ROWS, LOADS,
                K, OUT, KEEP, PRECISION,
            )  # fmt: skip
        if r >= 2:
            there = pixel + (r - 2) * W
            kept = mask_out if EVEN else mask_out & (row - 1 < H)
            kept_byte = mask_byte if EVEN else mask_byte & (row - 1 < H)
            ds, product, product_r = close(
                acc2, base, there[:, None] * C + n[None, :], kept, first.to(tl.int64) * (H * W * (C // 8)),
                there[:, None] * (C // 8) + byte[None, :], kept_byte, added_ptr, added_2_ptr, mask_ptr,
                y_ptr, y_r_ptr, scale, shift, mean, mean_r, ds_ptr, MASK, YS, BLOCK_M, OUT,
            )  # fmt: skip
            if YS > 0:
                total += ds
                products += product
            if YS == 2:
                products_r += product_r
        acc2 = acc1
        acc1 = acc0
    if YS > 0:
        mine = partial_ptr + pid * ((YS + 1) * C) + tl.arange(0, C)
        tl.store(mine, fold_channels(total, PAIR, C))
        tl.store(mine + C, fold_channels(products, PAIR, C))
        if YS == 2:
            tl.store(mine + 2 * C, fold_channels(products_r, PAIR, C))


def launch(
    up: Upstream,
    coefficients: Coefficients | Backward,
    target: Target,
    precision: str,
    roll: Roll,
    dependent: bool,
) -> Partial | None:
    """Write the target's ds; return the sums of its ys, if it has any. The weight is that of
    rolling.pack_weight, of the flipped, transposed kernel. coefficients: made, or what they are made of
    on the way."""
    n, c, h, w = target.ds.shape
    pair = pairing(c)
    tiles, constants = cut(n, h, w, pair, roll)
    given, sums = target.arguments(tiles)
    due = (
        coefficients.arguments()
        if isinstance(coefficients, Backward)
        else NOTHING | {"BATCH": coefficients[1] is not None}
    )
    c1, c2, c0 = (None, None, None) if isinstance(coefficients, Backward) else coefficients
    gradient_rolling_kernel[(tiles,)](
        **up.arguments(), c1_ptr=c1, c2_ptr=c2, c0_ptr=c0, **given, **due, DUE=isinstance(coefficients,
        Backward),
        N=n, H=h, W=w, C=c, PRECISION=precision, **constants, num_warps=roll.warps, num_stages=1,
        **options(dependent),
    )  # fmt: skip
    return sums
