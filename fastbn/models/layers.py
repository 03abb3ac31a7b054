"""The layers that a Spec asks for: convolution, norm, activation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fastbn.models.families import Spec

GROUPS = 8  # of GroupNorm, as many as divide the channels


@fx.wrap
def differentiable(x: Tensor) -> Tensor:
    """Return x, requiring grad wherever a graph is being recorded."""
    return x if x.requires_grad or not torch.is_grad_enabled() else x.detach().requires_grad_()


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm whose input always requires grad: on CPUs torch's channels-last backward crashes the
    process where γ and β train and the input does not (torch 2.13), as behind a first convolution that is
    frozen."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(differentiable(x))


class Layers:
    """A maker of a network's layers. Under `norm="selu"` there is no norm, and SELU stands for BatchNorm and
    ReLU (Klambauer et al. 2017)."""

    def __init__(self, spec: Spec):
        self.spec = spec
        self.activation = F.selu if spec.norm == "selu" else F.relu

    def conv(self, in_channels: int, channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=self.spec.conv_bias)

    def norm(self, channels: int) -> nn.Module:
        eps = self.spec.norm_eps
        if self.spec.norm == "batch":
            return nn.BatchNorm2d(channels, eps, self.spec.norm_momentum)
        if self.spec.norm == "instance":
            return nn.InstanceNorm2d(channels, eps, affine=True)
        if self.spec.norm == "group":
            return GroupNorm(math.gcd(GROUPS, channels), channels, eps)
        return nn.Identity()
