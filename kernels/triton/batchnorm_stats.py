"""batchnorm_stats: a BatchNorm's few numbers a channel, from the partial results that a convolution's
programs left.

    forward    (count, mean, M2) of every program -> μ, σ², r = (σ² + ε)^-½, scale = γ·r, shift = β − μ·scale;
    the running statistics move
    backward   Σ ds and Σ ds·(y − μ) of every program -> dβ, dγ = r·Σ ds·(y − μ), and c1, c2, c0 of dy = c1·ds
               + c2·y + c0

The kernel that reads next does it: each of its programs merges the partial results for itself, out of the
second-level cache, and program 0 writes what is kept. That costs no launch, no atomic and no wait. Where
programs are many, or the reader is of another kind, it is a small launch of its own.

Layout   partial results (programs, rows, C) fp32 with a row for each kind of number.
Order    that of the programs, whoever merges: no floating-point atomics, so runs repeat bit for bit.
Source   Chan, Golub, LeVeque 1983, the pairwise update; c1, c2, c0 from the derivative of (y − μ)·r·γ + β.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from .early_launch import begin, wait

# What depends on the batch, or on a counter's place among others, must not make Triton compile a kernel anew.
# So each kernel that ends a BatchNorm lists its parameters: of a tuple Triton 3.7.1 specialises every member.
UNSPECIALISED: Any = {"do_not_specialize": ["due_tiles"], "do_not_specialize_on_alignment": ["batches_ptr"]}


@triton.jit
def merge_moments(partial_ptr, tiles, C, offs_c, mask_c, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr):
    """Return (mean, M2), each (BLOCK_C,), of `tiles` partial results in their order."""
    count = tl.zeros((BLOCK_C,), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    for t in range(0, tiles, BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        mask = (offs_t < tiles)[:, None] & mask_c[None, :]
        at = partial_ptr + offs_t[:, None] * (3 * C) + offs_c[None, :]
        n = tl.load(at, mask=mask, other=0.0)
        mean_t = tl.load(at + C, mask=mask, other=0.0)
        m2_t = tl.load(at + 2 * C, mask=mask, other=0.0)
        pivot = tl.load(partial_ptr + t * (3 * C) + C + offs_c, mask=mask_c, other=0.0)
        here = tl.sum(n, 0)
        mean_b = pivot + tl.sum(n * (mean_t - pivot[None, :]), 0) / tl.maximum(here, 1.0)
        d = mean_t - mean_b[None, :]
        m2_b = tl.sum(m2_t, 0) + tl.sum(n * d * d, 0)
        total = tl.maximum(count + here, 1.0)
        delta = mean_b - mean
        m2 += m2_b + delta * delta * (count * here / total)
        mean += delta * (here / total)
        count += here
    return mean, m2


@triton.jit
def merge_sums(
    partial_ptr,
    tiles,
    row,
    C,
    offs_c,
    mask_c,
    KINDS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Return row 0's sum and another row's, each (BLOCK_C,), over `tiles` partial results in their order."""
    first = tl.zeros((BLOCK_C,), tl.float32)
    other = tl.zeros((BLOCK_C,), tl.float32)
    for t in range(0, tiles, BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        mask = (offs_t < tiles)[:, None] & mask_c[None, :]
        at = partial_ptr + offs_t[:, None] * (KINDS * C) + offs_c[None, :]
        first += tl.sum(tl.load(at, mask=mask, other=0.0), 0)
        other += tl.sum(tl.load(at + row * C, mask=mask, other=0.0), 0)
    return first, other


@triton.jit
def load_or(ptr, offs_c, mask_c, otherwise, BLOCK_C: tl.constexpr):
    """Return a vector in fp32; `otherwise` throughout where there is none."""
    vector = tl.zeros((BLOCK_C,), tl.float32) + otherwise
    if ptr is not None:
        vector = tl.load(ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    return vector


@triton.jit
def settle_forward(
    # (tiles, 3, C), or None: by the running statistics; rows of y
    partial_ptr,
    tiles,
    rows,
    vectors_ptr,
    stride,  # rows of (4, C), out
    weight_ptr,
    bias_ptr,
    conv_bias_ptr,  # (C,), each or None
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,  # (C,), (C,) and one int64, or None
    eps,
    share,  # this batch's share in the running statistics
    # whether this program writes what is kept, and counts the batch
    C,
    offs_c,
    mask_c,
    writes,
    counts,
    MOVES: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Return scale and shift (BLOCK_C,). CUMULATIVE: the share is one in all batches so far. COUNTS: this
    batch is not yet counted."""
    # the raw output is without the convolution's bias
    offset = load_or(conv_bias_ptr, offs_c, mask_c, 0.0, BLOCK_C)
    weight = load_or(weight_ptr, offs_c, mask_c, 1.0, BLOCK_C)
    bias = load_or(bias_ptr, offs_c, mask_c, 0.0, BLOCK_C)
    if partial_ptr is not None:
        mean, m2 = merge_moments(partial_ptr, tiles, C, offs_c, mask_c, BLOCK_C, BLOCK_T)
        var = m2 / rows
    else:
        mean = load_or(running_mean_ptr, offs_c, mask_c, 0.0, BLOCK_C) - offset
        var = load_or(running_var_ptr, offs_c, mask_c, 1.0, BLOCK_C)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    scale = rstd * weight
    shift = bias - mean * scale
    if writes:
        tl.store(vectors_ptr + offs_c, mean, mask=mask_c)
        tl.store(vectors_ptr + stride + offs_c, rstd, mask=mask_c)
        tl.store(vectors_ptr + 2 * stride + offs_c, scale, mask=mask_c)
        tl.store(vectors_ptr + 3 * stride + offs_c, shift, mask=mask_c)
        if MOVES:
            if batches_ptr is not None:
                batches = tl.load(batches_ptr)
                if COUNTS:
                    batches += 1
                    tl.store(batches_ptr, batches, mask=counts)
                if CUMULATIVE:
                    share = 1.0 / batches.to(tl.float32)
            old = load_or(running_mean_ptr, offs_c, mask_c, 0.0, BLOCK_C)
            tl.store(running_mean_ptr + offs_c, old + share * (mean + offset - old), mask=mask_c)
            old = load_or(running_var_ptr, offs_c, mask_c, 0.0, BLOCK_C)
            unbiased = var * (rows / tl.maximum(rows - 1.0, 1.0))
            tl.store(running_var_ptr + offs_c, old + share * (unbiased - old), mask=mask_c)
    return scale, shift


@triton.jit
def settle_backward(
    # (tiles, KINDS, C): Σ ds, then Σ ds·(y − μ) of each y, this one's in `row`; rows of y
    partial_ptr,
    tiles,
    row,
    rows,
    vectors_ptr,
    stride,  # rows of (4, C)
    affine_ptr,
    affine_stride,  # rows of (2, C), out
    C,
    offs_c,
    mask_c,
    writes,
    BATCH: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Return c1, c2 and c0 (BLOCK_C,)."""
    mean = tl.load(vectors_ptr + offs_c, mask=mask_c, other=0.0)
    rstd = tl.load(vectors_ptr + stride + offs_c, mask=mask_c, other=0.0)
    scale = tl.load(vectors_ptr + 2 * stride + offs_c, mask=mask_c, other=0.0)
    dbias, product = merge_sums(partial_ptr, tiles, row, C, offs_c, mask_c, KINDS, BLOCK_C, BLOCK_T)
    dweight = rstd * product
    if writes:
        tl.store(affine_ptr + offs_c, dweight, mask=mask_c)
        tl.store(affine_ptr + affine_stride + offs_c, dbias, mask=mask_c)
    c2 = tl.zeros((BLOCK_C,), tl.float32)
    c0 = tl.zeros((BLOCK_C,), tl.float32)
    if BATCH:
        c2 = -scale * rstd * dweight / rows
        c0 = -scale * dbias / rows - c2 * mean
    return scale, c2, c0


@triton.jit(**UNSPECIALISED)
def settle_forward_kernel(
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
    C: tl.constexpr,
    MOVES: tl.constexpr,
    CUMULATIVE: tl.constexpr,
    COUNTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    wait(PDL)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    settle_forward(
        due_ptr, due_tiles, due_rows, vectors_ptr, stride, weight_ptr, bias_ptr, conv_bias_ptr,
        running_mean_ptr, running_var_ptr,
        batches_ptr, eps, share, C, offs_c, offs_c < C, tl.program_id(0) >= 0, tl.program_id(0) == 0, MOVES,
        CUMULATIVE, COUNTS, BLOCK_C,
        BLOCK_T,
    )  # fmt: skip


@triton.jit(do_not_specialize=["due_tiles"])
def settle_backward_kernel(
    due_ptr,
    due_tiles,
    due_row,
    due_rows,
    due_vectors_ptr,
    due_stride,
    affine_ptr,
    affine_stride,
    coefficient_ptr,  # (3, C) out, or None
    C: tl.constexpr,
    BATCH: tl.constexpr,
    KINDS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    wait(PDL)
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    c1, c2, c0 = settle_backward(
        due_ptr, due_tiles, due_row, due_rows, due_vectors_ptr, due_stride, affine_ptr, affine_stride, C,
        offs_c, mask_c,
        tl.program_id(0) >= 0, BATCH, KINDS, BLOCK_C, BLOCK_T,
    )  # fmt: skip
    if coefficient_ptr is not None:
        tl.store(coefficient_ptr + offs_c, c1, mask=mask_c)
        tl.store(coefficient_ptr + C + offs_c, c2, mask=mask_c)
        tl.store(coefficient_ptr + 2 * C + offs_c, c0, mask=mask_c)
