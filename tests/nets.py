"""Small networks and their states, for the engine's tests."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.models.resnet import FastBNOnlyResNet


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """γ of both signs, β, running statistics and frozen biases drawn: nothing is at a value that hides a
    mistake."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in norms(model):
            for tensor, low, high in (
                (norm.weight, -1.5, 1.5),
                (norm.bias, -0.5, 0.5),
                (norm.running_mean, -1.0, 1.0),
                (norm.running_var, 0.5, 2.0),
            ):
                if tensor is not None:
                    tensor.copy_(torch.rand(tensor.shape, generator=draw) * (high - low) + low)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape, generator=draw))
    return model


def flip_free(model: nn.Module) -> nn.Module:
    """β = ±6: no ReLU's sign hangs on a rounding, so float32 gradients can be held to float32's error."""
    with torch.no_grad():
        for norm in norms(model):
            channel = torch.arange(norm.num_features, device=norm.bias.device)
            norm.bias.copy_(torch.where(channel % 3 > 0, 6.0, -6.0))
    return model


def frozen_convolutions(model: nn.Module) -> nn.Module:
    """Everything but BatchNorm frozen, as fastbn.freeze does it, and drawn from a fixed seed."""
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


def images(
    batch: int,
    height: int = 8,
    width: int = 8,
    channels: int = 3,
    seed: int = 1,
    dtype=torch.float64,
    grad=False,
) -> Tensor:
    """A mean of its own in every channel, well away from 0."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=draw, dtype=torch.float64)
    return (x + torch.arange(channels).view(1, -1, 1, 1) - 1.5).to(dtype).requires_grad_(grad)


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
