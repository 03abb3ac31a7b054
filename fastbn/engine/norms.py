"""What a BatchNorm module asks for at this call: batch or running statistics, and how its running statistics move."""

from __future__ import annotations

from torch import Tensor, nn

from fastbn.engine.operations import Statistics


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
