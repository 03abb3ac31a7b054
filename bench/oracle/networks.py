"""Networks in states that hide no mistake, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def gradient(model: nn.Module) -> Tensor:
    """Return the gradient of every γ and β in one float64 vector: in short arithmetic the ones that are all
    rounding drown in it."""
    found = [p.grad for norm in norms(model) for p in (norm.weight, norm.bias)]
    return torch.cat([g.detach().double().flatten() for g in found if g is not None])


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model with γ of both signs, β, running statistics and frozen biases drawn: nothing is at a
    value that hides a mistake."""
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
    """β = ±6: no ReLU's sign depends on a rounding, so float32 gradients can be held to float32's error."""
    with torch.no_grad():
        for norm in norms(model):
            channel = torch.arange(norm.num_features, device=norm.bias.device)
            norm.bias.copy_(torch.where(channel % 3 > 0, 6.0, -6.0))
    return model


def images(
    batch: int, height: int = 8, width: int = 8, channels: int = 3, seed=1, dtype=torch.float64, grad=False
) -> Tensor:
    """Return images with a mean of its own in every channel, well away from 0."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=draw, dtype=torch.float64)
    return (x + torch.arange(channels).view(1, -1, 1, 1) - 1.5).to(dtype).requires_grad_(grad)
