"""conv_rolling: y = conv(z), 3×3 at stride 1 with padding 1 and few channels, z formed once for three kernel rows, with what the
BatchNorm that reads y needs.

Each input row is loaded and formed once and feeds three products, one a kernel row, into three rotating accumulators. PAIR = 2: two
output pixels are one product, with a block-Toeplitz weight (K = 4C, N = 2C), so that neighbouring pixels are loaded once too;
PAIR = 1: three loads a row, one a kernel column (K = N = C), where the Toeplitz weight would be too large.

Layout   activations (N, H, W, C); weights (3 kernel rows, loads, K, N); masks (N, H, W, C/8). A program takes a band of ROWS rows
         of IMAGES images, STRIP products wide.
Traffic  reads what makes z (a band's two outer rows twice), writes y; writes z, and z's mask, if asked: each once.
Saved    y and the mask.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl
from torch import Tensor

from .settle import GROUP, Forward, settle_forward
from .source import Source, form, pack


@triton.jit
def conv_rolling_forward_kernel(
    x_ptr, r_ptr,                                       # (N, H, W, C) y or z; a residual or a projection's y, or None
    scale_ptr, shift_ptr, rscale_ptr, rshift_ptr,       # (C,) fp32, or None
    w_ptr,                                              # (3, loads, K, N)
    y_ptr,                                              # (N, H, W, C) out
    z_ptr, mask_ptr,                                    # (N, H, W, C) and (N, H, W, C/8) out, or None
    partial_ptr, counter_ptr,                           # see settle
    vectors_ptr, stride, weight_ptr, bias_ptr, conv_bias_ptr, running_mean_ptr, running_var_ptr, batches_ptr, eps, share,
    N,
    H: tl.constexpr, W: tl.constexpr, C: tl.constexpr,
    FORM: tl.constexpr, RELU: tl.constexpr, BATCH: tl.constexpr, MOVES: tl.constexpr, CUMULATIVE: tl.constexpr,
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
    x_ptr += base
    if r_ptr is not None:
        r_ptr += base
    pixel = (image * H + top) * W + column                         # of the band's first row, from the first image on
    scale, shift, rscale, rshift = 0.0, 0.0, 0.0, 0.0
    if FORM > 0:
        scale = tl.load(scale_ptr + k % C)[None, :]
        shift = tl.load(shift_ptr + k % C)[None, :]
    if FORM == 3:
        rscale = tl.load(rscale_ptr + k % C)[None, :]
        rshift = tl.load(rshift_ptr + k % C)[None, :]
    mask_y = mask_m[:, None] & ((column[:, None] + n[None, :] // C) < W)
    acc0 = tl.zeros((BLOCK_M, OUT), tl.float32)
    acc1 = tl.zeros((BLOCK_M, OUT), tl.float32)
    acc2 = tl.zeros((BLOCK_M, OUT), tl.float32)
    total = tl.zeros((BLOCK_M, OUT), tl.float32)                    # Σ(y − pivot) and Σ(y − pivot)², by place in the tile
    square = tl.zeros((BLOCK_M, OUT), tl.float32)
    pivot = tl.zeros((OUT,), tl.float32)
    across = tl.sum(mask_y.to(tl.float32), 0)                       # pixels a row
    for r in tl.static_range(ROWS + 2):
        row = top + r - 1
        acc0 = tl.zeros((BLOCK_M, OUT), tl.float32)
        for load in tl.static_range(LOADS):
            at = column[:, None] + k[None, :] // C + (load - 1)    # the column of each element
            inside = mask_m[:, None] & (at >= 0) & (at < W) & (row >= 0) & (row < H)
            offsets = (pixel + (r - 1) * W + (load - 1))[:, None] * C + k[None, :]
            z = form(x_ptr, r_ptr, offsets, inside, scale, shift, rscale, rshift, FORM, RELU)
            if (r >= 1) & (r <= ROWS) & ((LOADS == 1) | (load == 1)):   # a row and columns of this program's own
                own = inside & (k >= C)[None, :] & (k < 3 * C)[None, :] if PAIR == 2 else inside
                if z_ptr is not None:
                    tl.store(z_ptr + base + offsets, z, mask=own)
                if mask_ptr is not None:
                    byte = tl.arange(0, K // 8)
                    there = column[:, None] + byte[None, :] // (C // 8) + (load - 1)
                    inner = (byte >= C // 8) & (byte < 3 * (C // 8)) if PAIR == 2 else byte >= 0
                    bits = mask_ptr + first.to(tl.int64) * (H * W * (C // 8))
                    bits += (pixel + (r - 1) * W + (load - 1))[:, None] * (C // 8) + byte[None, :]
                    tl.store(bits, pack(z, BLOCK_M, K), mask=mask_m[:, None] & inner[None, :] & (there < W) & (row < H))
            w = w_ptr + load * (K * OUT) + k[:, None] * OUT + n[None, :]
            if r < ROWS:
                acc0 = tl.dot(z, tl.load(w), acc0, input_precision=PRECISION)
            if (r >= 1) & (r <= ROWS):
                acc1 = tl.dot(z, tl.load(w + LOADS * K * OUT), acc1, input_precision=PRECISION)
            if r >= 2:
                acc2 = tl.dot(z, tl.load(w + 2 * LOADS * K * OUT), acc2, input_precision=PRECISION)
        if r >= 2:
            y = acc2.to(y_ptr.dtype.element_ty)
            kept = mask_y & (row - 1 < H)
            tl.store(y_ptr + base + (pixel + (r - 2) * W)[:, None] * C + n[None, :], y, mask=kept)
            if BATCH:
                stored = y.to(tl.float32)
                if r == 2:
                    pivot = tl.sum(tl.where(kept, stored, 0.0), 0) / tl.maximum(across, 1.0)
                d = tl.where(kept, stored - pivot[None, :], 0.0)
                total += d
                square += d * d
        acc2 = acc1
        acc1 = acc0
    if BATCH:
        count = across * tl.minimum(H - top, ROWS)
        s = tl.sum(total, 0)
        mean = s / tl.maximum(count, 1.0)
        own = partial_ptr + pid * (3 * OUT) + n // C * (3 * C) + n % C
        tl.store(own, count)
        tl.store(own + C, pivot + mean)
        tl.store(own + 2 * C, tl.maximum(tl.sum(square, 0) - s * mean, 0.0, propagate_nan=tl.PropagateNan.ALL))
    offs_c = tl.arange(0, C)
    settle_forward(
        partial_ptr, counter_ptr, vectors_ptr, stride, weight_ptr, bias_ptr, conv_bias_ptr, running_mean_ptr, running_var_ptr,
        batches_ptr, eps, share, N * (H * W) * 1.0, pid, tl.num_programs(0), 0, C, offs_c, offs_c < C,
        BATCH, MOVES, CUMULATIVE, C, GROUP, PAIR,
    )


@dataclasses.dataclass(frozen=True)
class Roll:
    """A configuration of the rolling kernels."""

    images: int  # of a program
    rows: int  # of its band
    strip: int  # products of one of its rows: pixels, or pairs of them
    warps: int


def pairing(channels: int) -> int:
    """Output pixels of one product: the Toeplitz weight of more channels would not fit beside what else is shared."""
    return 2 if channels <= 32 else 1


def cut(n: int, h: int, w: int, pair: int, roll: Roll) -> tuple[int, int]:
    """How many programs, and the power of two that holds a row's products of their images."""
    programs = triton.cdiv(n, roll.images) * triton.cdiv(h, roll.rows) * triton.cdiv(w, pair * roll.strip)
    return programs, max(16, triton.next_power_of_2(roll.images * roll.strip))


def pack_weight(weight: Tensor) -> Tensor:
    """(OC, C, 3, 3) -> (3 kernel rows, loads, K, N): for pairs block-Toeplitz, four neighbouring pixels to two outputs."""
    c_out, c_in = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0)  # (3, 3, C, OC)
    if pairing(c_in) == 1:
        return rows.contiguous()
    t = weight.new_zeros(3, 4, c_in, 2, c_out)
    for p in range(2):
        for kw in range(3):
            t[:, p + kw, :, p, :] = rows[:, kw]
    return t.reshape(3, 1, 4 * c_in, 2 * c_out)


def launch(source: Source, weight: Tensor, y: Tensor, end: Forward, precision: str, roll: Roll) -> None:
    """y = conv(source), as packed by pack_weight."""
    n, c, h, w = y.shape
    pair = pairing(c)
    tiles, block = cut(n, h, w, pair, roll)
    conv_rolling_forward_kernel[(tiles,)](
        **source.arguments(), w_ptr=weight, y_ptr=y, **end.arguments(tiles, 1, c, pair),
        N=n, H=h, W=w, C=c, PRECISION=precision, PAIR=pair, IMAGES=roll.images, ROWS=roll.rows, STRIP=roll.strip,
        BLOCK_M=block, GROUP=GROUP,
        num_warps=roll.warps, num_stages=1,
    )  # fmt: skip
