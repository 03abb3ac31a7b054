"""Small networks and their states, for the engine's tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.oracle.networks import scattered
from fastbn.models.resnet import FastBNOnlyResNet


def frozen_convolutions(model: nn.Module) -> nn.Module:
    """Return the model with everything but BatchNorm frozen, as fastbn.freeze does it, and drawn from a fixed
    seed."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
                for parameter in module.parameters():
                    parameter.copy_(
                        torch.randn(parameter.shape, generator=draw) / parameter[0].numel() ** 0.5
                    )
                    parameter.requires_grad_(False)
    return scattered(model)


def resnet(depth: int = 8, width: int = 4, family: str | None = None, **options) -> FastBNOnlyResNet:
    return scattered(FastBNOnlyResNet(depth, width=width, family=family, engine="stock", **options))


class Chain(nn.Module):
    """convolution -> BatchNorm -> ReLU for each pair given, in turn."""

    def __init__(self, *convs: nn.Conv2d, **options):
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(conv.out_channels, **options) for conv in convs)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x


def chain(*convs: nn.Conv2d, **options) -> nn.Module:
    return frozen_convolutions(Chain(*convs, **options))
