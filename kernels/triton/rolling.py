"""The rolling kernels share this: how a program's rows and products lie, the weights, and the three
products of a row.

A program takes a band of ROWS rows of IMAGES images, STRIP products wide. Each row is loaded once and feeds
three products, one a kernel row, into three accumulators that rotate. PAIR = 2: two output pixels are one
product, with a block-Toeplitz weight (K = 4C, N = 2C), so that neighbouring pixels are loaded once too;
PAIR = 1: three loads a row, one a kernel column (K = N = C), where the Toeplitz weight would be too large.
"""

from __future__ import annotations

import dataclasses

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def place(
    pid,
    H: tl.constexpr,
    W: tl.constexpr,
    PAIR: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Return where a program's tile lies: its band's first row, its first image, and of each product the
    image (from the first on) and the column of its first pixel."""
    BANDS: tl.constexpr = (H + ROWS - 1) // ROWS
    STRIPS: tl.constexpr = (W + PAIR * STRIP - 1) // (PAIR * STRIP)
    top = (pid // STRIPS % BANDS) * ROWS
    first = pid // (STRIPS * BANDS) * IMAGES
    m = tl.arange(0, BLOCK_M)
    return top, first, m // STRIP, (pid % STRIPS * STRIP + m % STRIP) * PAIR


@triton.jit
def load_row(w_ptr, row: tl.constexpr, K: tl.constexpr, N: tl.constexpr, LOADS: tl.constexpr):
    """Return a kernel row's weights, a tile (K, N) a load."""
    w = w_ptr + row * (LOADS * K * N) + (tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :])
    first = tl.load(w)
    if LOADS == 1:
        return (first, first, first)
    return (first, tl.load(w + K * N), tl.load(w + 2 * K * N))


@triton.jit
def load_kept(w_ptr, K: tl.constexpr, N: tl.constexpr, LOADS: tl.constexpr, KEEP: tl.constexpr):
    """Return the three kernel rows' weights, as `multiply` takes them: loaded where they are kept."""
    kept = ((0,), (0,), (0,))
    if KEEP:
        kept = (
            load_row(w_ptr, 0, K, N, LOADS),
            load_row(w_ptr, 1, K, N, LOADS),
            load_row(w_ptr, 2, K, N, LOADS),
        )
    return kept


@triton.jit
def load_tile(w_ptr, tile: tl.constexpr, K: tl.constexpr, N: tl.constexpr):
    """Return one of them, (K, N)."""
    return tl.load(w_ptr + tile * (K * N) + (tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :]))


@triton.jit
def tile_channels(vector, C: tl.constexpr, K: tl.constexpr):
    """Return the channels of K / C pixels: (C,) -> (1, K)."""
    return tl.reshape(tl.broadcast_to(vector[None, :], (K // C, C)), (1, K))


@triton.jit
def real(image, first, N, IMAGES: tl.constexpr, EVEN: tl.constexpr):
    """Return which products are of an image that there is, (BLOCK_M,). What is known when compiled is not
    asked: EVEN programs overhang by their halo only."""
    if EVEN:
        return tl.full(image.shape, 1, tl.int1)
    return (image < IMAGES) & (first + image < N)


@triton.jit
def real_outputs(mask_m, column, n, PER: tl.constexpr, W: tl.constexpr, EVEN: tl.constexpr):
    """Return which elements of the products' outputs are the image's, (BLOCK_M, n), with PER elements of n
    for each pixel: its channels, or its mask's bytes."""
    if EVEN:
        return tl.full((mask_m.shape[0], n.shape[0]), 1, tl.int1)
    return mask_m[:, None] & ((column[:, None] + n[None, :] // PER) < W)


@triton.jit
def read_at(
    mask_m,
    pixel,
    column,
    k,
    row,
    r: tl.constexpr,
    load: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    PAIR: tl.constexpr,
    ROWS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Return which elements of a load of row r are the image's, and where they lie from the program's first
    image on."""
    inside = tl.broadcast_to(mask_m[:, None], (mask_m.shape[0], k.shape[0]))
    if PAIR == 2:
        at = column[:, None] + k[None, :] // C - 1
        inside = inside & (at >= 0) & (at < W)
    elif load == 0:
        inside = inside & (column > 0)[:, None]
    elif load == 2:
        inside = inside & (column < W - 1)[:, None]
    if r == 0:
        inside = inside & (row >= 0)
    if not EVEN or r > ROWS:
        inside = inside & (row < H)
    if not EVEN and PAIR == 1:
        inside = inside & (column + (load - 1) < W)[:, None]
    return inside, (pixel + (r - 1) * W + (load - 1))[:, None] * C + k[None, :]


@triton.jit
def multiply(
    tile,  # (BLOCK_M, K), a load of row r
    w_ptr,
    kept,  # of load_kept
    acc0,
    acc1,
    acc2,
    r: tl.constexpr,
    load: tl.constexpr,
    ROWS: tl.constexpr,
    LOADS: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the accumulators with this load's products: row r is the upper row of output r, the middle one
    of r − 1, the lower one of r − 2, as far as those are the band's."""
    if r < ROWS:
        w = kept[0][load] if KEEP else load_tile(w_ptr, 0 * LOADS + load, K, N)
        acc0 = tl.dot(tile, w, acc0, input_precision=PRECISION)
    if (r >= 1) & (r <= ROWS):
        w = kept[1][load] if KEEP else load_tile(w_ptr, 1 * LOADS + load, K, N)
        acc1 = tl.dot(tile, w, acc1, input_precision=PRECISION)
    if r >= 2:
        w = kept[2][load] if KEEP else load_tile(w_ptr, 2 * LOADS + load, K, N)
        acc2 = tl.dot(tile, w, acc2, input_precision=PRECISION)
    return acc0, acc1, acc2


@dataclasses.dataclass(frozen=True)
class Roll:
    """A configuration of the rolling kernels."""

    images: int  # of a program
    rows: int  # of its band
    strip: int  # products of one of its rows: pixels, or pairs of them
    warps: int
    keep: bool = True  # the weights in shared memory from the start, rather than read again for every row


def pairing(channels: int) -> int:
    """Return the output pixels of one product: the Toeplitz weight of more channels would not fit beside
    what else is shared."""
    return 2 if channels <= 32 else 1


def cut(n: int, h: int, w: int, pair: int, roll: Roll) -> tuple[int, dict[str, int | bool]]:
    """Return how many programs there are, and the kernels' constants: the power of two that holds a row's
    products of their images, and whether every program is as full as that."""
    programs = triton.cdiv(n, roll.images) * triton.cdiv(h, roll.rows) * triton.cdiv(w, pair * roll.strip)
    block = max(16, triton.next_power_of_2(roll.images * roll.strip))
    even = (
        block == roll.images * roll.strip and n % roll.images == h % roll.rows == w % (pair * roll.strip) == 0
    )
    sizes = {"IMAGES": roll.images, "ROWS": roll.rows, "STRIP": roll.strip, "BLOCK_M": block}
    return programs, {"PAIR": pair, **sizes, "EVEN": even, "KEEP": roll.keep}


def pack_weight(weight: Tensor) -> Tensor:
    """Pack a weight: (OC, C, 3, 3) -> (3 kernel rows, loads, K, N): for pairs block-Toeplitz, four
    neighbouring pixels to two outputs."""
    c_out, c_in = weight.shape[:2]
    rows = weight.permute(2, 3, 1, 0)  # (3, 3, C, OC)
    if pairing(c_in) == 1:
        return rows.contiguous()
    t = weight.new_zeros(3, 4, c_in, 2, c_out)
    for p in range(2):
        for kw in range(3):
            t[:, p + kw, :, p, :] = rows[:, kw]
    return t.reshape(3, 1, 4 * c_in, 2 * c_out)
