"""settle: a BatchNorm's few numbers a channel, made by the last programs of the convolution that made the many.

    forward    (count, mean, M2) of every program -> μ, σ², r = (σ² + ε)^-½, scale = γ·r, shift = β − μ·scale; the running statistics move
    backward   Σ ds and Σ ds·(y − μ) of every program -> dβ, dγ = r·Σ ds·(y − μ), and c1, c2, c0 of dy = c1·ds + c2·y + c0

Layout   partial results (programs, rows, C) fp32 with a row for each kind of number; behind them the groups' (groups, rows, C).
         A column is a block of channels: its programs arrive apart from other columns'.
Order    the last program of a group to arrive merges the group's results in their order, the last group to arrive all groups':
         no floating-point atomics, so runs repeat bit for bit. Counters return to zero for the next launch.
Source   Chan, Golub, LeVeque 1983, the pairwise update; c1, c2, c0 from the derivative of (y − μ)·r·γ + β.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 32  # programs a group


@dataclasses.dataclass(frozen=True)
class Forward:
    """The BatchNorm that a convolution's last programs make ready."""

    vectors: Tensor  # (4, C) fp32 rows, out
    weight: Tensor | None  # (C,) each, of any float dtype
    bias: Tensor | None
    conv_bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    batches: Tensor | None  # int64, counts a batch; None: does not
    eps: float
    share: float | None  # of this batch in the running statistics; 0: they stay; None: 1/batches
    batch: bool  # by y's statistics, or by the running ones
    counters: Tensor  # int32 zeros

    def arguments(self, tiles: int, columns: int, channels: int, split: int = 1) -> dict[str, Any]:
        """The kernel's, for so many programs and columns of them."""
        partial = _partial(self.vectors, tiles, split, 3, channels) if self.batch else None
        return {
            "partial_ptr": partial, "counter_ptr": _counters(self.counters, tiles, columns), "vectors_ptr": self.vectors,
            "stride": self.vectors.stride(0), "weight_ptr": self.weight, "bias_ptr": self.bias, "conv_bias_ptr": self.conv_bias,
            "running_mean_ptr": self.running_mean, "running_var_ptr": self.running_var, "batches_ptr": self.batches,
            "eps": self.eps, "share": self.share or 0.0,
            "BATCH": self.batch, "MOVES": self.batch and self.share != 0.0, "CUMULATIVE": self.share is None,
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Backward:
    """The BatchNorms, one or two, that a gradient's last programs end: of the raw outputs that the value was made of."""

    vectors: tuple[Tensor, ...]  # (4, C) fp32 rows
    affine: tuple[Tensor, ...]  # (2, C) fp32 rows, out
    coefficients: tuple[Tensor, ...]  # (3, C) fp32, out
    batch: tuple[bool, ...]
    counters: Tensor  # int32 zeros

    def arguments(self, tiles: int, columns: int, channels: int, split: int = 1) -> dict[str, Any]:
        """The kernel's; with no BatchNorm there is nothing to end."""
        ys = len(self.vectors)
        rows = [*self.vectors, None, None][:2], [*self.affine, None, None][:2], [*self.coefficients, None, None][:2]
        return {
            "partial_ptr": _partial(self.vectors[0], tiles, split, ys + 1, channels) if ys else None,
            "counter_ptr": _counters(self.counters, tiles, columns), "vectors_ptr": rows[0][0], "vectors_r_ptr": rows[0][1],
            "stride": self.vectors[0].stride(0) if ys else 0, "affine_ptr": rows[1][0], "affine_r_ptr": rows[1][1],
            "affine_stride": self.affine[0].stride(0) if ys else 0, "coefficient_ptr": rows[2][0], "coefficient_r_ptr": rows[2][1],
            "YS": ys, "BATCH": ys > 0 and self.batch[0], "BATCH_R": ys > 1 and self.batch[1],
        }  # fmt: skip


def _partial(like: Tensor, tiles: int, split: int, rows: int, channels: int) -> Tensor:
    return torch.empty((tiles * split + triton.cdiv(tiles, GROUP)) * rows * channels, dtype=torch.float32, device=like.device)


def _counters(counters: Tensor, tiles: int, columns: int) -> Tensor:
    needed = columns * (triton.cdiv(tiles, GROUP) + 1) + 1
    assert counters.numel() >= needed, f"{needed} counters are needed, there are {counters.numel()}"
    return counters


@triton.jit
def arrive(counter_ptr, programs):
    """Whether this program is the last of so many to come here; it then sees what the others had written."""
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def merge_moments(partial_ptr, tiles, C, offs_c, mask_c, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr):
    """(count, mean, M2), each (BLOCK_C,), of `tiles` partial results in their order."""
    count = tl.zeros((BLOCK_C,), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    for t in range(0, tiles, BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        mask = (offs_t < tiles)[:, None] & mask_c[None, :]
        at = partial_ptr + offs_t[:, None] * (3 * C) + offs_c[None, :]
        n = tl.load(at, mask=mask, other=0.0, cache_modifier=".cg")
        mean_t = tl.load(at + C, mask=mask, other=0.0, cache_modifier=".cg")
        m2_t = tl.load(at + 2 * C, mask=mask, other=0.0, cache_modifier=".cg")
        pivot = tl.load(partial_ptr + t * (3 * C) + C + offs_c, mask=mask_c, other=0.0, cache_modifier=".cg")
        here = tl.sum(n, 0)  # every block has a tile that counts
        mean_b = pivot + tl.sum(n * (mean_t - pivot[None, :]), 0) / tl.maximum(here, 1.0)
        d = mean_t - mean_b[None, :]
        m2_b = tl.sum(m2_t, 0) + tl.sum(n * d * d, 0)
        total = tl.maximum(count + here, 1.0)
        delta = mean_b - mean
        m2 += m2_b + delta * delta * (count * here / total)
        mean += delta * (here / total)
        count += here
    return count, mean, m2


@triton.jit
def merge_sums(partial_ptr, tiles, row, C, offs_c, mask_c, ROWS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr):
    """One row's sum (BLOCK_C,) over `tiles` partial results in their order."""
    total = tl.zeros((BLOCK_C,), tl.float32)
    for t in range(0, tiles, BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        mask = (offs_t < tiles)[:, None] & mask_c[None, :]
        at = partial_ptr + (offs_t[:, None] * ROWS + row) * C + offs_c[None, :]
        total += tl.sum(tl.load(at, mask=mask, other=0.0, cache_modifier=".cg"), 0)
    return total


@triton.jit
def write_vectors(mean, var, vectors_ptr, stride, weight_ptr, bias_ptr, eps, offs_c, mask_c):
    """μ, r, scale and shift into rows of (4, C)."""
    rstd = tl.div_rn(1.0, tl.sqrt_rn(var + eps))
    scale = rstd
    if weight_ptr is not None:
        scale = rstd * tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    shift = -mean * scale
    if bias_ptr is not None:
        shift += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    tl.store(vectors_ptr + offs_c, mean, mask=mask_c)
    tl.store(vectors_ptr + stride + offs_c, rstd, mask=mask_c)
    tl.store(vectors_ptr + 2 * stride + offs_c, scale, mask=mask_c)
    tl.store(vectors_ptr + 3 * stride + offs_c, shift, mask=mask_c)


@triton.jit
def settle_forward(
    partial_ptr, counter_ptr,                     # (tiles + groups, 3, C), (columns, groups + 1)
    vectors_ptr, stride,                          # rows of (4, C), out
    weight_ptr, bias_ptr, conv_bias_ptr,          # (C,), each or None
    running_mean_ptr, running_var_ptr, batches_ptr,  # (C,), (C,) and one int64, or None
    eps, share, rows,                             # share of this batch in the running statistics; rows of y
    pid, tiles, column, C, offs_c, mask_c,
    BATCH: tl.constexpr, MOVES: tl.constexpr, CUMULATIVE: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
):
    """BATCH: by y's own statistics, of which this program has left SPLIT partial results; else by the running ones."""
    offset = tl.zeros((BLOCK_C,), tl.float32)  # the raw output is without the convolution's bias
    if conv_bias_ptr is not None:
        offset += tl.load(conv_bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
    if BATCH:
        group, groups = pid // GROUP, tl.cdiv(tiles, GROUP)
        size = tl.minimum(tiles - group * GROUP, GROUP)
        counters = counter_ptr + column * (groups + 1)
        if arrive(counters + group, size):
            count, mean, m2 = merge_moments(
                partial_ptr + group * (GROUP * SPLIT * 3 * C), size * SPLIT, C, offs_c, mask_c, BLOCK_C, GROUP
            )
            merged_ptr = partial_ptr + tiles * (SPLIT * 3 * C)
            tl.store(merged_ptr + group * (3 * C) + offs_c, count, mask=mask_c)
            tl.store(merged_ptr + group * (3 * C) + C + offs_c, mean, mask=mask_c)
            tl.store(merged_ptr + group * (3 * C) + 2 * C + offs_c, m2, mask=mask_c)
            if arrive(counters + groups, groups):
                count, mean, m2 = merge_moments(merged_ptr, groups, C, offs_c, mask_c, BLOCK_C, GROUP)
                var = m2 / rows
                write_vectors(mean, var, vectors_ptr, stride, weight_ptr, bias_ptr, eps, offs_c, mask_c)
                if MOVES:
                    if CUMULATIVE:
                        share = 1.0 / (tl.load(batches_ptr) + 1).to(tl.float32)
                    old_mean = tl.load(running_mean_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
                    old_var = tl.load(running_var_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)
                    tl.store(running_mean_ptr + offs_c, old_mean + share * (mean + offset - old_mean), mask=mask_c)
                    unbiased = var * (rows / tl.maximum(rows - 1.0, 1.0))
                    tl.store(running_var_ptr + offs_c, old_var + share * (unbiased - old_var), mask=mask_c)
                if batches_ptr is not None:
                    # one count a launch: the columns' common one
                    columns = tl.num_programs(1)
                    if arrive(counter_ptr + columns * (groups + 1), columns):
                        tl.store(batches_ptr, tl.load(batches_ptr) + 1)
    elif pid == 0:
        mean = tl.load(running_mean_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32) - offset
        var = tl.load(running_var_ptr + offs_c, mask=mask_c, other=1.0).to(tl.float32)
        write_vectors(mean, var, vectors_ptr, stride, weight_ptr, bias_ptr, eps, offs_c, mask_c)


@triton.jit
def write_gradient(
    total, product, vectors_ptr, stride, affine_ptr, affine_stride, coefficient_ptr, rows, C, offs_c, mask_c, BATCH: tl.constexpr
):
    """dγ and dβ into rows of (2, C); c1, c2, c0 into (3, C)."""
    mean = tl.load(vectors_ptr + offs_c, mask=mask_c, other=0.0)
    rstd = tl.load(vectors_ptr + stride + offs_c, mask=mask_c, other=0.0)
    scale = tl.load(vectors_ptr + 2 * stride + offs_c, mask=mask_c, other=0.0)
    dweight = product * rstd
    tl.store(affine_ptr + offs_c, dweight, mask=mask_c)
    tl.store(affine_ptr + affine_stride + offs_c, total, mask=mask_c)
    tl.store(coefficient_ptr + offs_c, scale, mask=mask_c)
    if BATCH:
        c2 = -scale * rstd * dweight / rows
        tl.store(coefficient_ptr + C + offs_c, c2, mask=mask_c)
        tl.store(coefficient_ptr + 2 * C + offs_c, -scale * total / rows - c2 * mean, mask=mask_c)


@triton.jit
def settle_backward(
    partial_ptr, counter_ptr,                     # (tiles + groups, YS + 1, C), (columns, groups + 1)
    vectors_ptr, vectors_r_ptr, stride,           # rows of (4, C) of each y's BatchNorm
    affine_ptr, affine_r_ptr, affine_stride,      # rows of (2, C), out
    coefficient_ptr, coefficient_r_ptr,           # (3, C), out
    rows, pid, tiles, column, C, offs_c, mask_c,
    YS: tl.constexpr, BATCH: tl.constexpr, BATCH_R: tl.constexpr, BLOCK_C: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr,
):
    """This program has left SPLIT partial results of Σ ds and, for each of the YS raw outputs, Σ ds·(y − μ)."""
    group, groups = pid // GROUP, tl.cdiv(tiles, GROUP)
    size = tl.minimum(tiles - group * GROUP, GROUP)
    counters = counter_ptr + column * (groups + 1)
    ROWS: tl.constexpr = YS + 1
    if arrive(counters + group, size):
        merged_ptr = partial_ptr + tiles * (SPLIT * ROWS * C)
        for row in tl.static_range(ROWS):
            total = merge_sums(
                partial_ptr + group * (GROUP * SPLIT * ROWS * C), size * SPLIT, row, C, offs_c, mask_c, ROWS, BLOCK_C, GROUP
            )
            tl.store(merged_ptr + (group * ROWS + row) * C + offs_c, total, mask=mask_c)
        if arrive(counters + groups, groups):
            total = merge_sums(merged_ptr, groups, 0, C, offs_c, mask_c, ROWS, BLOCK_C, GROUP)
            product = merge_sums(merged_ptr, groups, 1, C, offs_c, mask_c, ROWS, BLOCK_C, GROUP)
            write_gradient(total, product, vectors_ptr, stride, affine_ptr, affine_stride, coefficient_ptr, rows, C, offs_c, mask_c, BATCH)
            if YS == 2:
                product = merge_sums(merged_ptr, groups, 2, C, offs_c, mask_c, ROWS, BLOCK_C, GROUP)
                write_gradient(
                    total, product, vectors_r_ptr, stride, affine_r_ptr, affine_stride, coefficient_r_ptr, rows, C, offs_c, mask_c, BATCH_R
                )
