"""PrunedResNet is what is left of a ResNet when channels that are constant have gone: plain torch modules.

A stream is the sequence of activations that additions join. Where a BatchNorm that feeds it has lost
channels, its convolution computes
the others alone: they are added at their places, and what the lost ones always are comes from one vector of
constants:

    z = relu( identity[+ shortcut at its places][+ branch at its places][+ constant] )
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelSource(nn.Module):
    """A convolution and its BatchNorm, (N, in, H, W) -> (N, k, H', W'), and the k places that it has among
    the stream's channels."""

    places: Tensor | None

    def __init__(self, units: list[tuple[nn.Conv2d, nn.BatchNorm2d]], places: Tensor | None):
        super().__init__()
        self.length = len(units)
        for i, (conv, norm) in enumerate(units, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", norm)
        self.register_buffer("places", places)  # (k,) int64, or None: all, in order

    def forward(self, x: Tensor) -> Tensor:
        for i in range(1, self.length + 1):
            x = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(x))
            if i < self.length:
                x = F.relu(x)
        return x


class Sum(nn.Module):
    """(N, in, H, W) -> (N, channels, H', W'): relu of the sum of sources, each at its places, of the
    identity, and of a constant."""

    constant: Tensor | None

    def __init__(
        self,
        channels: int,
        sources: list[ChannelSource],
        identity: bool,
        constant: Tensor | None,
        stride: int,
    ):
        super().__init__()
        self.channels, self.identity, self.stride = channels, identity, stride
        self.sources = nn.ModuleList(sources)
        self.register_buffer("constant", constant)  # (1, channels, 1, 1), or None: zero

    def forward(self, x: Tensor) -> Tensor:
        total = x if self.identity else None
        for source in self.sources:
            assert isinstance(source, ChannelSource)
            n = source(x)
            if source.places is None:
                total = n if total is None else total + n
            else:
                if total is None:
                    total = n.new_zeros(n.shape[0], self.channels, n.shape[2], n.shape[3])
                total = total.index_add(1, source.places, n)
        if total is None:  # nothing but constants are left
            total = x.new_zeros(
                x.shape[0], self.channels, -(-x.shape[2] // self.stride), -(-x.shape[3] // self.stride)
            )
        if self.constant is not None:
            total = total + self.constant
        return F.relu(total)


class PrunedResNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, classes): a stem, stages of residual sums, pooling and a linear
    layer, as the network had."""

    def __init__(self, stem: Sum, maxpool: nn.MaxPool2d | None, stages: list[list[Sum]], fc: nn.Linear):
        super().__init__()
        self.stem = stem
        self.maxpool = maxpool
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.maxpool is not None:
            x = self.maxpool(x)
        for stage in self.stages:
            x = stage(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
