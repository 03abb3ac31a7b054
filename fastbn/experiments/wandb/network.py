"""The bottleneck "ResNet-20" of the W&B report.

Source   Paul 2020, The Power of Random Features of a CNN; its network is the Keras Idiomatic Programmer's
resnet_cifar10.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbn.models.families import Spec
from fastbn.models.layers import Layers
from fastbn.models.network import Network


class Block(nn.Module):
    """1×1, 3×3 (it strides), 1×1, each with its BatchNorm; beside them the identity, or a 1×1 convolution
    that has none."""

    def __init__(
        self, layers: Layers, in_channels: int, inner: int, channels: int, stride: int, project: bool
    ):
        super().__init__()
        self.conv1, self.bn1 = layers.conv(in_channels, inner, 1), layers.norm(inner)
        self.conv2, self.bn2 = layers.conv(inner, inner, 3, stride), layers.norm(inner)
        self.conv3, self.bn3 = layers.conv(inner, channels, 1), layers.norm(channels)
        self.projection = layers.conv(in_channels, channels, 1, stride) if project else None
        self.activation = layers.activation

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.activation(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.projection is None else self.projection(x)
        return self.activation(out + identity)


class BottleneckNet(Network):
    """Images (N, 3, H, W) -> logits: a 3×3 stem, three groups of a projection and an identity block,
    BatchNorm and ReLU, the mean."""

    def build(self, spec: Spec) -> None:
        layers, channels = Layers(spec), spec.width
        self.activation = layers.activation
        self.conv1, self.bn1 = layers.conv(3, channels, 3), layers.norm(channels)
        for i, growth in enumerate((4, 2, 2)):
            inner, wide = channels, channels * growth
            blocks = [
                Block(layers, channels, inner, wide, 1 if i == 0 else 2, True),
                Block(layers, wide, inner, wide, 1, False),
            ]
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            channels = wide
        self.bn2 = layers.norm(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.conv1(x)))
        for i in range(3):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(self.activation(self.bn2(x))), 1))
