"""A batch straight from the bytes on the device: cropped, mirrored, normalised, in one gather and one
look-up.

    out[b, c, y, x] = table[257·c + byte],  byte = images[i, y + top − pad, x' + left − pad, c],  or 256, the
    padding, outside the image
    i = indices[b],  (top, left) = offsets[i],  x' = W − 1 − x where flips[i], else x

Layout   images (N, H, W, 3) uint8; table (3·257,); out (B, 3, H, W) channels-last, that is (B, H, W, 3), in
the table's type.
Traffic  reads and writes 3·B·H·W, each program BLOCK neighbouring values of one image, so that stores are
         whole; the table stays in the first-level cache. Saves nothing: no gradient passes here.
Bits     no arithmetic on values: those of the table, whatever the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
WARPS = 4


@triton.jit
def augment_kernel(
    images_ptr,                  # (N, H, W, 3) uint8
    table_ptr,                   # (3·(PADDING + 1),)
    indices_ptr,                 # (B,) int64
    offsets_ptr, flips_ptr,      # (N, 2) int64 and (N,) bool, or None: the images as they are
    out_ptr,                     # (B, H, W, 3) out
    pad,
    H: tl.constexpr, W: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # within the image, which has fewer than 2³¹ values
    mask = offs < H * W * 3
    c, x, y = offs % 3, offs // 3 % W, offs // (3 * W)
    sample = tl.load(indices_ptr + b)
    inside = mask
    if offsets_ptr is not None:
        x = tl.where(tl.load(flips_ptr + sample), W - 1 - x, x)
        y += (tl.load(offsets_ptr + sample * 2) - pad).to(tl.int32)
        x += (tl.load(offsets_ptr + sample * 2 + 1) - pad).to(tl.int32)
        inside &= (y >= 0) & (y < H) & (x >= 0) & (x < W)
    byte = tl.load(images_ptr + sample * (H * W * 3) + ((y * W + x) * 3 + c), mask=inside, other=0).to(
        tl.int32
    )
    value = tl.load(table_ptr + c * (PADDING + 1) + tl.where(inside, byte, PADDING))
    tl.store(out_ptr + b * (H * W * 3) + offs, value, mask=mask)


def batch(
    images: Tensor, table: Tensor, indices: Tensor, offsets: Tensor | None, flips: Tensor | None, pad: int
) -> Tensor:
    """Return the images at `indices`, by an epoch's `offsets` and `flips`, or as they are where both are
    None: (B, 3, H, W), channels last."""
    _, height, width, _ = images.shape
    shape = (indices.shape[0], 3, height, width)
    out = torch.empty(shape, dtype=table.dtype, device=images.device, memory_format=torch.channels_last)
    grid = (shape[0], triton.cdiv(3 * height * width, BLOCK))
    augment_kernel[grid](
        images_ptr=images,
        table_ptr=table,
        indices_ptr=indices,
        offsets_ptr=offsets, flips_ptr=flips,
        out_ptr=out,
        pad=pad,
        H=height, W=width, PADDING=table.shape[0] // 3 - 1, BLOCK=BLOCK,
        num_warps=WARPS,
    )  # fmt: skip
    return out
