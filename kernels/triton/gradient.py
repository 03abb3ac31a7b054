"""gradient: a value's gradient, ds = (convᵀ(dy) + Σ added)·mask with dy = c1·ds + c2·y + c0 formed as it is
loaded, and what ends the gradients of the BatchNorms that made the value. Any shape; without a convolution it
is the pass over the added terms alone.

Layout   activations (N, H, W, C); weights (KH·KW, OC, C), the kernel's transpose; masks (N, H, W, C/8). A
         stride's parity classes of pixels (row mod SH, column mod SW) are programs of their own: each has its
         own taps.
Traffic  reads ds and y of the convolution (a tap's overlap again from a cache), the added terms, and the mask
         or the y that it is recomputed from; writes ds. The sums Σ ds, Σ ds·(y − μ) are of ds as stored,
         centred: μ is known by then.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .batchnorm_pending import Partial, partial
from .conv import Tile, geometry
from .early_launch import begin, options, wait
from .prologue import affine, form_dy, unpack


@triton.jit
def close(
    # (ROWS, COLUMNS) fp32 and where: from an origin of 64 bits on
    dx,
    origin,
    offsets,
    inside,
    origin_bits,
    bits,
    inside_bits,  # the mask's bytes of it
    added_ptr,
    added_2_ptr,
    mask_ptr,
    y_ptr,
    y_r_ptr,
    scale,
    shift,
    mean,
    mean_r,
    ds_ptr,
    MASK: tl.constexpr,
    YS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add, mask and store; return the tile as stored, and its products with y − μ. MASK: 0 linear, 1 the
    forward's bits, 2 recomputed from y."""
    if added_ptr is not None:
        dx += tl.load(added_ptr + origin + offsets, mask=inside, other=0.0).to(tl.float32)
    if added_2_ptr is not None:
        dx += tl.load(added_2_ptr + origin + offsets, mask=inside, other=0.0).to(tl.float32)
    if YS > 0 or MASK == 2:
        y = tl.load(y_ptr + origin + offsets, mask=inside, other=0.0)
    if MASK == 1:
        dx = tl.where(
            unpack(tl.load(mask_ptr + origin_bits + bits, mask=inside_bits, other=0), ROWS, COLUMNS), dx, 0.0
        )
    if MASK == 2:
        dx = tl.where(affine(y, scale, shift) <= 0, 0.0, dx)  # a NaN leaves it open
    ds = tl.where(inside, dx, 0.0).to(ds_ptr.dtype.element_ty)
    tl.store(ds_ptr + origin + offsets, ds, mask=inside)
    ds = ds.to(tl.float32)
    product = ds
    if YS > 0:
        product = ds * (y.to(tl.float32) - mean)
    product_r = ds
    if YS == 2:
        y_r = tl.load(y_r_ptr + origin + offsets, mask=inside, other=0.0).to(tl.float32)
        product_r = ds * (y_r - mean_r)
    return ds, product, product_r


@triton.jit
def gradient_kernel(
    # (N, OH, OW, OC) ds and y, (OC,) fp32; c2, c0 None where statistics are frozen
    up_ptr,
    up_y_ptr,
    c1_ptr,
    c2_ptr,
    c0_ptr,
    w_ptr,  # (KH·KW, OC, C)
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
    MASK: tl.constexpr,
    YS: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """KH = 0: there is no convolution."""
    begin(PDL)
    COLUMNS: tl.constexpr = (C + BLOCK_N - 1) // BLOCK_N
    pid_m, pid_n, parity = tl.program_id(0) // COLUMNS, tl.program_id(0) % COLUMNS, tl.program_id(1)
    py, px = parity // SW, parity % SW
    high, wide = (H + SH - 1) // SH, (W + SW - 1) // SW  # pixels of a parity class, at most
    area = high * wide
    first = pid_m.to(tl.int64) * BLOCK_M // area
    m = (pid_m.to(tl.int64) * BLOCK_M - first * area).to(tl.int32) + tl.arange(0, BLOCK_M)
    image, q = m // area, m % area
    h, w = q // wide * SH + py, q % wide * SW + px
    mask_m = (first + image < N) & (h < H) & (w < W)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < C
    dx = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    wait(PDL)
    if KH > 0:
        up_ptr += first * OH * OW * OC
        if up_y_ptr is not None:
            up_y_ptr += first * OH * OW * OC
    for tap in tl.static_range(KH * KW):
        # dx[h] reads dy[oh] with oh·SH = h + PH − kh·DH; the multiples of the stride keep dividends positive
        down, right = PH - tap // KW * DH + KH * DH * SH, PW - tap % KW * DW + KW * DW * SW
        if ((py + down) % SH == 0) & ((px + right) % SW == 0):
            oh, ow = (h + down) // SH - KH * DH, (w + right) // SW - KW * DW
            inside_m = mask_m & (oh >= 0) & (oh < OH) & (ow >= 0) & (ow < OW)
            pixel = (image * OH + oh) * OW + ow
            for k0 in range(0, OC, BLOCK_K):
                k = k0 + tl.arange(0, BLOCK_K)
                mask_k = k < OC
                inside = inside_m[:, None] & mask_k[None, :]
                offsets = pixel[:, None] * OC + k[None, :]
                dy = tl.load(up_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                dy *= tl.load(c1_ptr + k, mask=mask_k, other=0.0)[None, :]
                if c2_ptr is not None:
                    y = tl.load(up_y_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                    c2 = tl.load(c2_ptr + k, mask=mask_k, other=0.0)[None, :]
                    c0 = tl.load(c0_ptr + k, mask=mask_k, other=0.0)[None, :]
                    dy = form_dy(dy, y, c2, c0, inside, True)
                weight = tl.load(
                    w_ptr + (tap * OC + k)[:, None] * C + offs_n[None, :],
                    mask=mask_k[:, None] & mask_n[None, :],
                    other=0.0,
                )
                dx = tl.dot(dy.to(w_ptr.dtype.element_ty), weight, dx, input_precision=PRECISION)
    origin = first * H * W
    pixel = (image * H + h) * W + w
    inside = mask_m[:, None] & mask_n[None, :]
    offsets = pixel[:, None] * C + offs_n[None, :]
    byte = pid_n * (BLOCK_N // 8) + tl.arange(0, BLOCK_N // 8)
    WIDTH: tl.constexpr = (C + 7) // 8
    bits = pixel[:, None] * WIDTH + byte[None, :]
    scale, shift, mean, mean_r = 0.0, 0.0, 0.0, 0.0
    if YS > 0:
        mean = tl.load(vectors_ptr + offs_n, mask=mask_n, other=0.0)[None, :]
    if YS == 2:
        mean_r = tl.load(vectors_r_ptr + offs_n, mask=mask_n, other=0.0)[None, :]
    if MASK == 2:
        scale = tl.load(vectors_ptr + 2 * stride + offs_n, mask=mask_n, other=0.0)[None, :]
        shift = tl.load(vectors_ptr + 3 * stride + offs_n, mask=mask_n, other=0.0)[None, :]
    ds, product, product_r = close(
        dx, origin * C, offsets, inside, origin * WIDTH, bits, mask_m[:, None] & (byte < WIDTH)[None, :],
        added_ptr, added_2_ptr, mask_ptr, y_ptr, y_r_ptr, scale, shift, mean, mean_r, ds_ptr, MASK, YS,
        BLOCK_M, BLOCK_N,
    )  # fmt: skip
    if YS > 0:
        place = partial_ptr + (parity * (tl.num_programs(0) // COLUMNS) + pid_m) * ((YS + 1) * C) + offs_n
        tl.store(place, tl.sum(ds, 0), mask=mask_n)
        tl.store(place + C, tl.sum(product, 0), mask=mask_n)
        if YS == 2:
            tl.store(place + 2 * C, tl.sum(product_r, 0), mask=mask_n)


@dataclasses.dataclass(frozen=True)
class Target:
    """The value whose gradient is wanted: what is added, how it was made, and where its gradient goes."""

    ds: Tensor  # (N, C, H, W) in channels-last memory, out
    added: tuple[Tensor, ...] = ()  # two at most
    mask: Tensor | None = None  # the forward's; without it the mask is recomputed from y
    function: str = "identity"  # the activation's name
    ys: tuple[Tensor, ...] = ()  # the raw outputs that it was made of
    vectors: tuple[Tensor, ...] = ()  # rows of (4, C) of their BatchNorms

    def arguments(self, tiles: int) -> tuple[dict[str, Any], Partial | None]:
        """Return the kernel's arguments, and where so many programs leave the sums of the ys."""
        n, c, h, w = self.ds.shape
        kinds = len(self.ys) + 1
        sums = partial(tiles, kinds, c, n * h * w, self.ds) if self.ys else None
        added, ys, vectors = ([*given, None, None][:2] for given in (self.added, self.ys, self.vectors))
        return {
            "added_ptr": added[0], "added_2_ptr": added[1], "mask_ptr": self.mask, "y_ptr": ys[0],
            "y_r_ptr": ys[1], "ds_ptr": self.ds,
            "partial_ptr": sums and sums.values, "vectors_ptr": vectors[0], "vectors_r_ptr": vectors[1],
            "stride": self.vectors[0].stride(0) if self.vectors else 0, "YS": len(self.ys),
            "MASK": 0 if self.function == "identity" else 1 if self.mask is not None else 2,
        }, sums  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Upstream:
    """The gradient that comes back through a convolution."""

    ds: Tensor  # (N, OC, OH, OW) in channels-last memory
    y: Tensor
    weight: Tensor

    def arguments(self) -> dict[str, Any]:
        """Return the kernel's arguments."""
        return {"up_ptr": self.ds, "up_y_ptr": self.y, "w_ptr": self.weight}


# c1, c2, c0; the last two None where statistics are frozen
Coefficients = tuple[Tensor, "Tensor | None", "Tensor | None"]
NOTHING = dict.fromkeys(("up_ptr", "up_y_ptr", "w_ptr"))
ELEMENTWISE = {"KH": 0, "KW": 0, "SH": 1, "SW": 1, "PH": 0, "PW": 0, "DH": 1, "DW": 1}


def launch(
    up: Upstream | None, conv: Any, coefficients: Coefficients | None, target: Target, precision: str,
    tile: Tile,
    dependent: bool,
) -> Partial | None:  # fmt: skip
    """Write the target's ds; return the sums of its ys, if it has any. conv: the convolution's kernel,
    stride, padding and dilation as pairs; none with `up` None."""
    n, c, h, w = target.ds.shape
    _, oc, oh, ow = up.ds.shape if up else (n, c, h, w)
    constants = geometry(conv) if up else ELEMENTWISE
    sh, sw = constants["SH"], constants["SW"]
    tiles, columns = (
        triton.cdiv(n * triton.cdiv(h, sh) * triton.cdiv(w, sw), tile.block_m),
        triton.cdiv(c, tile.block_n),
    )
    given, sums = target.arguments(tiles * sh * sw)
    c1, c2, c0 = coefficients or (None, None, None)
    gradient_kernel[(tiles * columns, sh * sw)](
        **(up.arguments() if up else NOTHING), c1_ptr=c1, c2_ptr=c2, c0_ptr=c0, **given,
        N=n, H=h, W=w, OH=oh, OW=ow, C=c, OC=oc, **constants, PRECISION=precision,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, num_warps=tile.warps,
        num_stages=tile.stages,
        **options(dependent),
    )  # fmt: skip
    return sums
