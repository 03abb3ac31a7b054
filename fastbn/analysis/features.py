"""The first layer's filters, and a layer's maps of given images: raw, and after γ and β."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from fastbn.engine.fuse import fuse
from fastbn.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Filters:
    """The first convolution of a network."""

    name: str
    weight: Tensor  # (C, C_in, KH, KW)
    scale: Tensor  # (C,): γ·(σ² + ε)^-½ of the BatchNorm that follows, 1 where none does


@dataclasses.dataclass(frozen=True)
class Maps:
    """The outputs of a convolution and its BatchNorm for images, before any addition and ReLU."""

    raw: Tensor  # (N, C, H, W): the convolution's output
    normalised: Tensor  # (N, C, H, W): after μ, σ, γ and β


def filters(model: nn.Module) -> Filters:
    """Return the filters of the first Conv2d in module order, and what its BatchNorm multiplies them by in
    eval mode. Raises UsageError where there is none."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    for i, (name, conv) in enumerate(layers):
        if isinstance(conv, nn.Conv2d):
            norm = layers[i + 1][1] if i + 1 < len(layers) else None
            scale = torch.ones(conv.out_channels, dtype=conv.weight.dtype)
            if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
                scale = (norm.weight * torch.rsqrt(norm.running_var + norm.eps)).detach().cpu()
            return Filters(name, conv.weight.detach().cpu(), scale)
    raise UsageError(f"{type(model).__name__} has no Conv2d: there are no filters to show")


def feature_maps(model: nn.Module, images: Tensor, norm: str) -> Maps:
    """Return the maps of a batch of images (N, 3, H, W), normalised as in training, at the BatchNorm2d called
    `norm`, in eval mode.

    A stock pass of a copy, its BatchNorm hooked: the engine forms neither of the two by itself.
    Raises UsageError where no BatchNorm2d has that name.
    """
    stock = fuse(copy.deepcopy(model), "stock").eval()
    modules = {name: module for name, module in stock.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if norm not in modules:
        raise UsageError(f"no BatchNorm2d is called {norm!r}; choose one of {', '.join(modules)}")
    maps: list[Maps] = []
    modules[norm].register_forward_hook(lambda module, inputs, output: maps.append(Maps(inputs[0], output)))
    with torch.no_grad():
        stock(images)
    return maps[0]
