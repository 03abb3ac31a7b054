"""A unit whose half is absent gets a neutral one: a convolution that copies, before a BatchNorm that reads no
convolution, or a BatchNorm that changes nothing, behind a convolution that no BatchNorm reads."""

from __future__ import annotations

import weakref

import torch
from torch import nn

_COPIES: weakref.WeakKeyDictionary[nn.Module, dict[torch.device, nn.Conv2d]] = weakref.WeakKeyDictionary()
_UNCHANGING: weakref.WeakKeyDictionary[nn.Module, dict[torch.device, nn.BatchNorm2d]] = (
    weakref.WeakKeyDictionary()
)


def copying(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a depthwise convolution of one pixel whose weights are 1; the same at each call."""
    like = next((t for t in (norm.weight, norm.running_mean) if t is not None), torch.empty(0))
    return _COPIES.setdefault(norm, {}).setdefault(like.device, _copying(norm.num_features, like.device))


def unchanging(conv: nn.Conv2d) -> nn.BatchNorm2d:
    """Return a BatchNorm in evaluation, of mean 0 and variance 1, without γ and β; the same at each call."""
    device = conv.weight.device
    return _UNCHANGING.setdefault(conv, {}).setdefault(device, _unchanging(conv.out_channels, device))


def _copying(channels: int, device: torch.device) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=device).requires_grad_(False)
    with torch.no_grad():
        conv.weight.fill_(1)
    return conv


def _unchanging(channels: int, device: torch.device) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=0.0, affine=False, device=device).eval()
