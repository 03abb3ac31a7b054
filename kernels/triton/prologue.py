"""prologue: what a convolution reads, z = [relu](scale·y + shift [+ residual | + rscale·y_r + rshift]),
formed as it is loaded; and masks.

A ReLU's mask holds one bit a channel, set where the ReLU was open: byte b of a pixel has channels 8b … 8b +
7, the lowest bit first. Arithmetic is fp32; z has the storage's precision. A NaN passes the ReLU and
leaves it open."""

from __future__ import annotations

import dataclasses
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

# FORM: z itself is read; scale·y + shift; + a residual; + a projection's raw output
PLAIN, AFFINE, RESIDUAL, PROJECTION = range(4)


@triton.jit
def affine(y, scale, shift):
    """Return scale·y + shift: for the ReLU, and the same bits again for its mask."""
    return y.to(tl.float32) * scale + shift


@triton.jit
def load_affine(scale_ptr, shift_ptr, rscale_ptr, rshift_ptr, offs_c, mask_c, FORM: tl.constexpr):
    """Return the vectors of `form` for these channels, (1, channels) fp32 each: scale, shift with the
    projection's own, rscale; 0 where there is none."""
    scale, shift, rscale = 0.0, 0.0, 0.0
    if FORM > 0:
        scale = tl.load(scale_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
        shift = tl.load(shift_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
    if FORM == 3:
        rscale = tl.load(rscale_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
        shift += tl.load(rshift_ptr + offs_c, mask=mask_c, other=0.0)[None, :]
    return scale, shift, rscale


@triton.jit
def form(
    y_ptr,
    r_ptr,
    offsets,
    inside,
    scale,
    shift,
    rscale,  # broadcast against the tile, fp32; shift with the projection's own
    FORM: tl.constexpr,
    FUNCTION: tl.constexpr,  # the activation's name
):
    """Return the tile of z at these offsets, zero outside: padding is zero after the ReLU."""
    y = tl.load(y_ptr + offsets, mask=inside, other=0.0)
    if FORM == 0:
        z = y
    else:
        n = affine(y, scale, shift)
        if FORM == 2:
            n += tl.load(r_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if FORM == 3:
            n += tl.load(r_ptr + offsets, mask=inside, other=0.0).to(tl.float32) * rscale
        if FUNCTION == "relu":
            n = tl.maximum(n, 0.0, propagate_nan=tl.PropagateNan.ALL)
        z = tl.where(inside, n, 0.0).to(y_ptr.dtype.element_ty)
    return z


@triton.jit
def form_dy(scaled, y, c2, c0, inside, PADDED: tl.constexpr):
    """Return dy = c1·ds + c2·y + c0, fp32, of scaled = c1·ds, which is all of it where statistics are frozen.
    PADDED: a product reads it, so outside the image it has to be 0, not c0."""
    dy = scaled + (c2 * y + c0)
    if PADDED:
        dy = tl.where(inside, dy, 0.0)
    return dy


@triton.jit
def pack(z, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Pack a mask: a tile of z (ROWS, COLUMNS) -> its mask's bytes (ROWS, COLUMNS / 8)."""
    eight = tl.reshape((z != 0).to(tl.int32), (ROWS, COLUMNS // 8, 8))
    return tl.sum(eight << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def unpack(bits, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Unpack a mask: its bytes (ROWS, COLUMNS / 8) -> whether each element's ReLU was open (ROWS,
    COLUMNS)."""
    eight = (bits.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(eight, (ROWS, COLUMNS)) != 0


@dataclasses.dataclass(frozen=True)
class Source:
    """The source that a kernel forms: FORM says which of the rest there are."""

    form: int
    function: str  # the activation's name
    x: Tensor  # (N, H, W, C) y, or z itself
    r: Tensor | None = None
    scale: Tensor | None = None  # (C,) fp32 each
    shift: Tensor | None = None
    rscale: Tensor | None = None
    rshift: Tensor | None = None
    z: Tensor | None = None  # (N, H, W, C) out
    mask: Tensor | None = None  # (N·H·W, ⌈C/8⌉) uint8 out

    def arguments(self) -> dict[str, Any]:
        """Return the kernel's arguments."""
        return {
            "x_ptr": self.x, "r_ptr": self.r, "scale_ptr": self.scale, "shift_ptr": self.shift,
            "rscale_ptr": self.rscale,
            "rshift_ptr": self.rshift, "z_ptr": self.z, "mask_ptr": self.mask, "FORM": self.form,
            "FUNCTION": self.function,
        }  # fmt: skip
