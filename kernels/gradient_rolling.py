"""gradient_rolling: a value's gradient through a 3×3 convolution at stride 1 with padding 1 and few channels,

    ds = (convᵀ(dy) + Σ added)·mask        dy = c1·ds + c2·y + c0, formed once for three kernel rows,

and what ends the gradients of the BatchNorms that made the value.

Rows roll and pixels pair as in conv_rolling, with the flipped, transposed weight.

Layout   activations (N, H, W, channels), OC read and C written; weights (3 kernel rows, loads, K, N); masks (N, H, W, C/8).
Traffic  reads ds and y of the convolution (a band's two outer rows twice), the added terms, and the mask or the y that tells it again;
         writes ds.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .conv_rolling import Roll, cut, pairing
from .gradient import Target, Upstream, close
from .settle import GROUP, Backward, settle_backward


@triton.jit
def gradient_rolling_kernel(
    up_ptr, up_y_ptr, c1_ptr, c2_ptr, c0_ptr,           # (N, H, W, C) ds and y, (C,) fp32; c2, c0 None where statistics are frozen
    w_ptr,                                              # (3, loads, K, N)
    added_ptr, added_2_ptr,                             # (N, H, W, C), or None
    mask_ptr, y_ptr, y_r_ptr,                           # (N, H, W, C/8), (N, H, W, C), or None
    ds_ptr,                                             # (N, H, W, C) out
    partial_ptr, counter_ptr,                           # see settle
    vectors_ptr, vectors_r_ptr, stride, affine_ptr, affine_r_ptr, affine_stride, coefficient_ptr, coefficient_r_ptr,
    N,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    MASK: tl.constexpr, YS: tl.constexpr, BATCH: tl.constexpr, BATCH_R: tl.constexpr,
    PRECISION: tl.constexpr, PAIR: tl.constexpr, IMAGES: tl.constexpr, ROWS: tl.constexpr, STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr, GROUP: tl.constexpr,
):
    pid = tl.program_id(0)
    BANDS: tl.constexpr = (H + ROWS - 1) // ROWS
    STRIPS: tl.constexpr = (W + PAIR * STRIP - 1) // (PAIR * STRIP)
    LOADS: tl.constexpr = 3 if PAIR == 1 else 1
    K: tl.constexpr = C if PAIR == 1 else 4 * C
    OUT: tl.constexpr = PAIR * C
    top = (pid // STRIPS % BANDS) * ROWS
    first = pid // (STRIPS * BANDS) * IMAGES
    m = tl.arange(0, BLOCK_M)
    image, column = m // STRIP, (pid % STRIPS * STRIP + m % STRIP) * PAIR
    mask_m = (image < IMAGES) & (first + image < N)
    k = tl.arange(0, K)
    n = tl.arange(0, OUT)
    base = first.to(tl.int64) * (H * W * C)
    up_ptr += base
    pixel = (image * H + top) * W + column
    c1 = tl.load(c1_ptr + k % C)[None, :]
    c2, c0 = 0.0, 0.0
    if c2_ptr is not None:
        up_y_ptr += base
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
    mask_out = mask_m[:, None] & ((column[:, None] + n[None, :] // C) < W)
    byte = tl.arange(0, OUT // 8)
    mask_byte = mask_m[:, None] & ((column[:, None] + byte[None, :] // (C // 8)) < W)
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
            at = column[:, None] + k[None, :] // C + (load - 1)
            inside = mask_m[:, None] & (at >= 0) & (at < W) & (row >= 0) & (row < H)
            offsets = (pixel + (r - 1) * W + (load - 1))[:, None] * C + k[None, :]
            dy = tl.load(up_ptr + offsets, mask=inside, other=0.0).to(tl.float32) * c1
            if c2_ptr is not None:
                y = tl.load(up_y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                dy = tl.where(inside, dy + (c2 * y + c0), 0.0)      # outside the image dy is 0, not c0
            dy = dy.to(w_ptr.dtype.element_ty)
            w = w_ptr + load * (K * OUT) + k[:, None] * OUT + n[None, :]
            if r < ROWS:
                acc0 = tl.dot(dy, tl.load(w), acc0, input_precision=PRECISION)
            if (r >= 1) & (r <= ROWS):
                acc1 = tl.dot(dy, tl.load(w + LOADS * K * OUT), acc1, input_precision=PRECISION)
            if r >= 2:
                acc2 = tl.dot(dy, tl.load(w + 2 * LOADS * K * OUT), acc2, input_precision=PRECISION)
        if r >= 2:
            there = pixel + (r - 2) * W
            here = row - 1 < H
            ds, product, product_r = close(
                acc2, base + (there[:, None] * C + n[None, :]), mask_out & here,
                first.to(tl.int64) * (H * W * (C // 8)) + (there[:, None] * (C // 8) + byte[None, :]), mask_byte & here,
                added_ptr, added_2_ptr, mask_ptr, y_ptr, y_r_ptr, scale, shift, mean, mean_r, ds_ptr, MASK, YS, BLOCK_M, OUT,
            )
            if YS > 0:
                total += ds
                products += product
            if YS == 2:
                products_r += product_r
        acc2 = acc1
        acc1 = acc0
    if YS > 0:
        own = partial_ptr + pid * ((YS + 1) * OUT) + n // C * ((YS + 1) * C) + n % C
        tl.store(own, tl.sum(total, 0))
        tl.store(own + C, tl.sum(products, 0))
        if YS == 2:
            tl.store(own + 2 * C, tl.sum(products_r, 0))
        offs_c = tl.arange(0, C)
        settle_backward(
            partial_ptr, counter_ptr, vectors_ptr, vectors_r_ptr, stride, affine_ptr, affine_r_ptr, affine_stride,
            coefficient_ptr, coefficient_r_ptr, N * (H * W) * 1.0, pid, tl.num_programs(0), 0, C, offs_c, offs_c < C,
            YS, BATCH, BATCH_R, C, GROUP, PAIR,
        )


def launch(up: Upstream, target: Target, end: Backward, precision: str, roll: Roll) -> None:
    """Writes the target's ds. The weight is that of conv_rolling.pack_weight, of the flipped, transposed kernel."""
    n, c, h, w = target.ds.shape
    pair = pairing(c)
    tiles, block = cut(n, h, w, pair, roll)
    gradient_rolling_kernel[(tiles,)](
        **up.arguments(), **target.arguments(), **end.arguments(tiles, 1, c, pair),
        N=n, H=h, W=w, C=c, PRECISION=precision, PAIR=pair, IMAGES=roll.images, ROWS=roll.rows, STRIP=roll.strip,
        BLOCK_M=block, GROUP=GROUP,
        num_warps=roll.warps, num_stages=1,
    )  # fmt: skip
