"""BatchNorm by channel: what a module asks for at this call, how its running statistics move, and the formulas of a few numbers
a channel that every CPU engine shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbn.engine.operations import Norm, Statistics


def uses_batch(norm: nn.BatchNorm2d) -> bool:
    """Whether it normalises by the batch's own statistics, as nn.BatchNorm2d decides it."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def running(norm: nn.BatchNorm2d, conv_bias: Tensor | None) -> Statistics:
    """Its running statistics, of the convolution's output without its bias."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean = norm.running_mean if conv_bias is None else norm.running_mean - conv_bias
    return Statistics(mean, norm.running_var)


def commit(norm: nn.BatchNorm2d, statistics: Statistics, conv_bias: Tensor | None, rows: int) -> None:
    """Moves the running statistics by one batch: momentum None is the cumulative average; the variance is the unbiased one."""
    tracks = norm.training and norm.track_running_stats
    if not tracks or norm.running_mean is None or norm.running_var is None:
        return
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:
        share = 1.0 / float(norm.num_batches_tracked) if norm.num_batches_tracked is not None else 0.0
    mean = statistics.mean if conv_bias is None else statistics.mean + conv_bias
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_((statistics.var * (rows / (rows - 1))).to(norm.running_var.dtype), share)


def normalise(statistics: Statistics, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor) -> None:
    """Writes μ, r = (σ² + ε)^-½, scale = γ·r and shift = β − μ·scale into out (4, C)."""
    mean, rstd, scale, shift = out
    mean.copy_(statistics.mean)
    rstd.copy_(statistics.var).add_(eps).rsqrt_()
    scale.copy_(rstd if weight is None else rstd * weight)
    torch.mul(mean, scale, out=shift).neg_()
    if bias is not None:
        shift += bias


def finish(sums: tuple[Tensor, Tensor], norm: Norm, rows: int, out: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Writes dγ = r·Σ ds·(y − μ) and dβ = Σ ds into out (2, C); returns c1, c2, c0 of dy = c1·ds + c2·y + c0."""
    dweight, dbias = out
    dbias.copy_(sums[0])
    torch.mul(sums[1], norm.rstd, out=dweight)
    c1 = norm.scale
    if not norm.batch:
        return c1, None, None
    c2 = c1 * norm.rstd * dweight / -rows
    return c1, c2, c1 * dbias / -rows - c2 * norm.mean
