"""BatchNorm by channel: what a module asks for at this call, how its running statistics move, and the
formulas of a few numbers a channel that every CPU engine shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbn.engine.interface import Coefficients, NormTarget, NormVectors, ProcessGroup, Statistics


def uses_batch(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    """Return whether it normalises by the batch's own statistics, as nn.BatchNorm2d decides it."""
    return norm.training or (norm.running_mean is None and norm.running_var is None)


def moves(norm: nn.BatchNorm2d) -> bool:
    """Return whether its running statistics move towards the batch's."""
    return norm.training and norm.track_running_stats and norm.running_mean is not None


def share_of_batch(norm: nn.BatchNorm2d) -> float:
    """Return by how much its running statistics move towards this batch's, and count the batch. Momentum None
    is the cumulative average."""
    if not moves(norm):
        return 0.0
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    if norm.momentum is not None:
        return norm.momentum
    return 1.0 / float(norm.num_batches_tracked) if norm.num_batches_tracked is not None else 0.0


def normalise(statistics: Statistics | None, target: NormTarget, rows: int) -> None:
    """Write μ, r = (σ² + ε)^-½, scale = γ·r and shift = β − μ·scale into the target's vectors, of the batch's
    statistics, or of the running ones where there are none; move the running ones, whose variance is the
    unbiased one. All without the convolution's bias. `statistics` and `rows` are this process's; a group
    makes everybody's of them."""
    norm = target.module
    if statistics is not None and target.group is not None:
        statistics, rows = target.group.statistics(statistics), target.group.rows(rows)
    mean, rstd, scale, shift = target.norm.vectors
    offset = 0 if target.conv_bias is None else target.conv_bias
    if statistics is None:
        assert norm.running_mean is not None and norm.running_var is not None
        statistics = Statistics(norm.running_mean - offset, norm.running_var)
    elif share := share_of_batch(norm):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.lerp_((statistics.mean + offset).to(norm.running_mean.dtype), share)
        norm.running_var.lerp_((statistics.var * (rows / (rows - 1))).to(norm.running_var.dtype), share)
    mean.copy_(statistics.mean)
    rstd.copy_(statistics.var).add_(norm.eps).rsqrt_()
    scale.copy_(rstd if norm.weight is None else rstd * norm.weight)
    torch.mul(mean, scale, out=shift).neg_()
    if norm.bias is not None:
        shift += norm.bias


def finish(
    sums: tuple[Tensor, Tensor], norm: NormVectors, rows: int, out: Tensor, group: ProcessGroup | None = None
) -> Coefficients:
    """Write dγ = r·Σ ds·(y − μ) and dβ = Σ ds into out (2, C); return c1, c2, c0 of dy = c1·ds + c2·y + c0.
    In a group `out` gets this process's part, which the gradient's own sum over processes completes; the
    coefficients are everybody's."""
    dweight, dbias = out
    dbias.copy_(sums[0])
    torch.mul(sums[1], norm.rstd, out=dweight)
    c1 = norm.scale
    if not norm.batch:
        return c1, None, None
    if group is not None:
        total, product = group.sums(*sums)
        rows, dbias, dweight = group.rows(rows), total.to(c1.dtype), (product * norm.rstd).to(c1.dtype)
    c2 = c1 * norm.rstd * dweight / -rows
    return c1, c2, c1 * dbias / -rows - c2 * norm.mean
