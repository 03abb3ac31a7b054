"""activation: z = [relu](scale·y + shift [+ residual | + rscale·y_r + rshift]) and its mask, where no
convolution forms them as it loads.

Layout   (M, C) rows of pixels; masks (M, ⌈C/8⌉).
Traffic  reads what makes z, writes z and the mask if asked.
"""

import triton
import triton.language as tl

from .early_launch import begin, options, wait
from .prologue import Source, form, load_affine, pack

BLOCK_M = 64


@triton.jit
def form_kernel(
    x_ptr,
    r_ptr,  # (M, C); r None without a residual or a projection
    scale_ptr,
    shift_ptr,
    rscale_ptr,
    rshift_ptr,  # (C,) fp32
    z_ptr,
    mask_ptr,  # (M, C), (M, ⌈C/8⌉) out; mask or None
    M,
    C: tl.constexpr,
    FORM: tl.constexpr,
    FUNCTION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    origin = tl.program_id(0).to(tl.int64) * BLOCK_M
    m = tl.arange(0, BLOCK_M)
    offs_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_m, mask_c = origin + m < M, offs_c < C
    inside = mask_m[:, None] & mask_c[None, :]
    offsets = origin * C + (m[:, None] * C + offs_c[None, :])
    wait(PDL)
    scale, shift, rscale = load_affine(scale_ptr, shift_ptr, rscale_ptr, rshift_ptr, offs_c, mask_c, FORM)
    z = form(x_ptr, r_ptr, offsets, inside, scale, shift, rscale, FORM, FUNCTION)
    tl.store(z_ptr + offsets, z, mask=inside)
    if mask_ptr is not None:
        WIDTH: tl.constexpr = (C + 7) // 8
        byte = tl.program_id(1) * (BLOCK_C // 8) + tl.arange(0, BLOCK_C // 8)
        at = mask_ptr + origin * WIDTH + (m[:, None] * WIDTH + byte[None, :])
        tl.store(at, pack(z, BLOCK_M, BLOCK_C), mask=mask_m[:, None] & (byte < WIDTH)[None, :])


def launch(source: Source, rows: int, channels: int, dependent: bool) -> None:
    """Write the source's z and mask."""
    block = min(64, max(16, triton.next_power_of_2(channels)))
    form_kernel[(triton.cdiv(rows, BLOCK_M), triton.cdiv(channels, block))](
        **source.arguments(),
        M=rows,
        C=channels,
        BLOCK_M=BLOCK_M,
        BLOCK_C=block,
        num_warps=4,
        **options(dependent),
    )
