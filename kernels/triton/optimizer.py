"""One step of SGD or Adam over the flat vector p (n,), in place, withheld as a whole where it must not be
taken.

SGD      d = g + λ·p;  b ← m·b + d;  p ← p − lr·b            (Nesterov: p ← p − lr·(d + m·b))
Adam     d = g + λ·p;  m ← m + (1−β₁)(d − m);  v ← β₂v + (1−β₂)d²;  t ← t + 1
         p ← p − lr·m / ((1 − β₁ᵗ)·(√(v / (1 − β₂ᵗ)) + ε))                       Kingma, Ba 2015
Gate     moved = allowed and every updated number is finite; where it is false nothing is written but `moved`

Layout   every vector (n,) fp32, contiguous; lr (), fp32 or fp64; allowed and moved () bool, two tensors; t ()
fp32, the steps that moved.
Traffic  two launches, since nothing may move before everything is known to be finite: the check reads p, g
         and the state and writes a flag a program; the update reads them again, out of L2, and writes p and
         the state. SGD: 3·n, then 3·n and 2·n written; Adam: 4·n, then 4·n and 3·n.
Bits     both launches evaluate one function, unfused (a contraction chosen differently in one of them could
         overflow in it alone), with exactly rounded √ and ÷, so runs repeat bit for bit and SGD has the same
         bits on every device. 1 − βᵗ is taken in fp64: in fp32 the first steps of Adam would lose four digits
         to it.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512
FLAGS = 1024  # flags read at a time
WARPS = 4
HEAD: tl.constexpr = tl.constexpr(4)  # scratch: t + 1, 1 − β₁ᵗ, 1 − β₂ᵗ, nothing, then the flags


@triton.jit
def finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def write_flag(scratch_ptr, pid, ok):
    tl.store(scratch_ptr + HEAD + pid, tl.min(ok.to(tl.float32), 0))


@triton.jit
def read_gate(scratch_ptr, allowed_ptr, CHUNKS: tl.constexpr, FLAGS: tl.constexpr):
    lowest = tl.load(allowed_ptr).to(tl.float32)
    for chunk in range(CHUNKS):
        offs_flag = chunk * FLAGS + tl.arange(0, FLAGS)
        flags = tl.load(scratch_ptr + HEAD + offs_flag, mask=offs_flag < tl.num_programs(0), other=1.0)
        lowest = tl.minimum(lowest, tl.min(flags, 0))
    return lowest > 0.5


@triton.jit
def sgd_formula(p, g, b, lr, weight_decay, momentum_factor, NESTEROV: tl.constexpr):
    d = g + weight_decay * p
    b = momentum_factor * b + d
    change = b
    if NESTEROV:
        change = d + momentum_factor * b
    return p - lr * change, b


@triton.jit
def adam_formula(
    p, g, m, v, correction1, correction2, lr, weight_decay, BETA1: tl.constexpr, BETA2: tl.constexpr,
    EPS: tl.constexpr
):  # fmt: skip
    d = g + weight_decay * p
    m = m + (1 - BETA1) * (d - m)
    v = BETA2 * v + (1 - BETA2) * (d * d)
    corrected = tl.sqrt_rn(tl.div_rn(v, correction2)) + EPS
    return p - lr * tl.div_rn(m, correction1 * corrected), m, v


@triton.jit
def sgd_check_kernel(
    p_ptr, g_ptr, b_ptr,         # (n,)
    scratch_ptr,                 # (HEAD + programs,) out: the flags
    lr_ptr,                      # ()
    n, weight_decay, momentum_factor,
    NESTEROV: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    offs = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    p = tl.load(p_ptr + offs, mask=mask, other=0.0)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0)
    b = tl.load(b_ptr + offs, mask=mask, other=0.0)
    p, b = sgd_formula(p, g, b, tl.load(lr_ptr).to(tl.float32), weight_decay, momentum_factor, NESTEROV)
    write_flag(scratch_ptr, pid, finite(p) & finite(b))


@triton.jit
def sgd_update_kernel(
    p_ptr, g_ptr, b_ptr,         # (n,) p and b in and out
    scratch_ptr,                 # (HEAD + programs,)
    lr_ptr, allowed_ptr,         # ()
    moved_ptr,                   # () out
    n, weight_decay, momentum_factor,
    NESTEROV: tl.constexpr, BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    offs = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    p = tl.load(p_ptr + offs, mask=mask, other=0.0)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0)
    b = tl.load(b_ptr + offs, mask=mask, other=0.0)
    p, b = sgd_formula(p, g, b, tl.load(lr_ptr).to(tl.float32), weight_decay, momentum_factor, NESTEROV)
    moved = read_gate(scratch_ptr, allowed_ptr, CHUNKS, FLAGS)
    if moved:
        tl.store(p_ptr + offs, p, mask=mask)
        tl.store(b_ptr + offs, b, mask=mask)
    if pid == 0:
        tl.store(moved_ptr, moved)


@triton.jit
def adam_check_kernel(
    p_ptr, g_ptr, m_ptr, v_ptr,  # (n,)
    steps_ptr,                   # ()
    scratch_ptr,                 # (HEAD + programs,) out
    lr_ptr,                      # ()
    n, weight_decay,
    LOG_BETA1: tl.constexpr, LOG_BETA2: tl.constexpr,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    offs = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    p = tl.load(p_ptr + offs, mask=mask, other=0.0)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0)
    m = tl.load(m_ptr + offs, mask=mask, other=0.0)
    v = tl.load(v_ptr + offs, mask=mask, other=0.0)
    steps = tl.load(steps_ptr) + 1
    correction1 = (1 - tl.exp(steps.to(tl.float64) * LOG_BETA1)).to(tl.float32)
    correction2 = (1 - tl.exp(steps.to(tl.float64) * LOG_BETA2)).to(tl.float32)
    lr = tl.load(lr_ptr).to(tl.float32)
    p, m, v = adam_formula(p, g, m, v, correction1, correction2, lr, weight_decay, BETA1, BETA2, EPS)
    write_flag(scratch_ptr, pid, finite(p) & finite(m) & finite(v))  # v may overflow to a change of 0
    if pid == 0:  # for the update, where no program may read what another one writes
        tl.store(scratch_ptr, steps)
        tl.store(scratch_ptr + 1, correction1)
        tl.store(scratch_ptr + 2, correction2)


@triton.jit
def adam_update_kernel(
    p_ptr, g_ptr, m_ptr, v_ptr,  # (n,) p, m and v in and out
    steps_ptr,                   # () out
    scratch_ptr,                 # (HEAD + programs,)
    lr_ptr, allowed_ptr,         # ()
    moved_ptr,                   # () out
    n, weight_decay,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
    CHUNKS: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    offs = pid.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < n
    p = tl.load(p_ptr + offs, mask=mask, other=0.0)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0)
    m = tl.load(m_ptr + offs, mask=mask, other=0.0)
    v = tl.load(v_ptr + offs, mask=mask, other=0.0)
    correction1, correction2 = tl.load(scratch_ptr + 1), tl.load(scratch_ptr + 2)
    lr = tl.load(lr_ptr).to(tl.float32)
    p, m, v = adam_formula(p, g, m, v, correction1, correction2, lr, weight_decay, BETA1, BETA2, EPS)
    moved = read_gate(scratch_ptr, allowed_ptr, CHUNKS, FLAGS)
    if moved:
        tl.store(p_ptr + offs, p, mask=mask)
        tl.store(m_ptr + offs, m, mask=mask)
        tl.store(v_ptr + offs, v, mask=mask)
    if pid == 0:
        tl.store(steps_ptr, tl.load(scratch_ptr), mask=moved)
        tl.store(moved_ptr, moved)


def scratch_for(vector: Tensor) -> Tensor:
    """Return what the updates of this vector (n,) need beside their state: allocated once, of no value
    between two calls."""
    return torch.empty(
        HEAD.value + triton.cdiv(vector.numel(), BLOCK), dtype=torch.float32, device=vector.device
    )


def sgd(
    vector: Tensor,
    gradient: Tensor,
    momentum: Tensor,
    scratch: Tensor,
    lr: Tensor,
    allowed: Tensor,
    moved: Tensor,
    *,
    weight_decay: float,
    momentum_factor: float,
    nesterov: bool,
) -> None:
    """Take one step of `vector` and `momentum` (n,), in place; whether it was taken goes into `moved`."""
    n = vector.numel()
    grid = (triton.cdiv(n, BLOCK),)
    sgd_check_kernel[grid](
        p_ptr=vector, g_ptr=gradient, b_ptr=momentum,
        scratch_ptr=scratch,
        lr_ptr=lr,
        n=n, weight_decay=weight_decay, momentum_factor=momentum_factor,
        NESTEROV=nesterov, BLOCK=BLOCK,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    sgd_update_kernel[grid](
        p_ptr=vector, g_ptr=gradient, b_ptr=momentum,
        scratch_ptr=scratch,
        lr_ptr=lr, allowed_ptr=allowed,
        moved_ptr=moved,
        n=n, weight_decay=weight_decay, momentum_factor=momentum_factor,
        NESTEROV=nesterov, BLOCK=BLOCK, CHUNKS=triton.cdiv(grid[0], FLAGS), FLAGS=FLAGS,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def adam(
    vector: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    scratch: Tensor,
    lr: Tensor,
    allowed: Tensor,
    moved: Tensor,
    *,
    weight_decay: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """Take one step of `vector`, `mean` and `square` (n,) and of the count `steps`, in place; whether it was
    taken goes into `moved`."""
    n = vector.numel()
    grid = (triton.cdiv(n, BLOCK),)
    adam_check_kernel[grid](
        p_ptr=vector, g_ptr=gradient, m_ptr=mean, v_ptr=square,
        steps_ptr=steps,
        scratch_ptr=scratch,
        lr_ptr=lr,
        n=n, weight_decay=weight_decay,
        LOG_BETA1=math.log(beta1), LOG_BETA2=math.log(beta2),
        BETA1=beta1, BETA2=beta2, EPS=eps, BLOCK=BLOCK,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
    adam_update_kernel[grid](
        p_ptr=vector, g_ptr=gradient, m_ptr=mean, v_ptr=square,
        steps_ptr=steps,
        scratch_ptr=scratch,
        lr_ptr=lr, allowed_ptr=allowed,
        moved_ptr=moved,
        n=n, weight_decay=weight_decay,
        BETA1=beta1, BETA2=beta2, EPS=eps, BLOCK=BLOCK, CHUNKS=triton.cdiv(grid[0], FLAGS), FLAGS=FLAGS,
        num_warps=WARPS, enable_fp_fusion=False,
    )  # fmt: skip
