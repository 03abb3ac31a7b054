"""FastBNOnlyResNet: an ordinary ResNet with torchvision's names, seeded weights, everything but BatchNorm
frozen, and fused.

Source   He et al. 2015, Deep Residual Learning (both families, post-activation); the bottleneck's stride is
on its 3×3, as torchvision's."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.errors import UsageError
from fastbn.models.families import Spec, resolve
from fastbn.models.layers import Layers
from fastbn.models.network import Network


class BasicBlock(nn.Module):
    """(N, in_channels, H, W) -> (N, channels, ⌈H/stride⌉, ⌈W/stride⌉): two 3×3 convolutions beside an
    identity or a projection."""

    expansion = 1

    def __init__(self, layers: Layers, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = layers.conv(in_channels, channels, 3, stride)
        self.bn1 = layers.norm(channels)
        self.conv2 = layers.conv(channels, channels, 3)
        self.bn2 = layers.norm(channels)
        self.downsample = _projection(layers, in_channels, channels, stride)
        self.activation = layers.activation

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.activation(out + identity)


class Bottleneck(nn.Module):
    """(N, in_channels, H, W) -> (N, 4·channels, ⌈H/stride⌉, ⌈W/stride⌉): 1×1, 3×3, 1×1 beside an identity
    or a projection."""

    expansion = 4

    def __init__(self, layers: Layers, in_channels: int, channels: int, stride: int):
        super().__init__()
        wide = channels * self.expansion
        first, second = (stride, 1) if layers.spec.stride_on == "1x1" else (1, stride)
        self.conv1 = layers.conv(in_channels, channels, 1, first)
        self.bn1 = layers.norm(channels)
        self.conv2 = layers.conv(channels, channels, 3, second)
        self.bn2 = layers.norm(channels)
        self.conv3 = layers.conv(channels, wide, 1)
        self.bn3 = layers.norm(wide)
        self.downsample = _projection(layers, in_channels, wide, stride)
        self.activation = layers.activation

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.activation(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return self.activation(out + identity)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class FastBNOnlyResNet(Network):
    """A ResNet of `depth` layers, images (N, 3, H, W) -> logits (N, num_classes), in which only BatchNorm's γ
    and β require grad.

    depth: 6n+2 (CIFAR family: three stages of n basic blocks, no max-pooling) or 18, 34, 50, 101, 152, 200
    (ImageNet family).
    width: channels of the first stage, doubled at each later one; 16 (CIFAR) or 64 (ImageNet).
    family: "cifar" or "imagenet"; inferred from the depth except for 50, 152 and 200, which are both.
    seed: of every parameter's draw, a stream a name; torch's global generators are neither read nor advanced.
    engine: what runs it, as in `fastbn.fuse`.
    weights: a torchvision-keyed .safetensors or .pth file, see `load_weights`.
    gamma_init, beta_init, weight_init: a name from `fastbn.models.init_names`.
    variant: norm, norm_eps, norm_momentum, conv_bias, stride_on, as in `fastbn.models.families.resolve`.

    Parameters are of torch's default dtype on its default device; on "meta" nothing is drawn.
    Attributes: `spec` (everything above, resolved), `weights_file` and `weights_sha256` (None without a
    file). Raises UsageError for an argument that cannot be."""

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        width: int | None = None,
        family: str | None = None,
        seed: int = 0,
        engine: str = "auto",
        weights: str | os.PathLike[str] | None = None,
        *,
        gamma_init: str = "uniform",
        beta_init: str = "zeros",
        weight_init: str = "kaiming_normal",
        **variant: Any,
    ):
        spec = resolve(depth, num_classes, width, family, seed, gamma_init, beta_init, weight_init, **variant)
        if spec.family not in ("cifar", "imagenet"):
            raise UsageError(
                f"FastBNOnlyResNet is of the family cifar or imagenet, got {family!r}; "
                "fastbn.models.network makes others"
            )
        super().__init__(spec, engine, weights)

    def build(self, spec: Spec) -> None:
        layers, block = Layers(spec), BLOCKS[spec.block]
        if spec.family == "cifar":
            self.conv1 = layers.conv(3, spec.width, 3)
            self.bn1 = layers.norm(spec.width)
        else:
            self.conv1 = layers.conv(3, spec.width, 7, 2)
            self.bn1 = layers.norm(spec.width)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.activation = layers.activation
        channels = spec.width
        for i, blocks in enumerate(spec.blocks):
            inner, stage = spec.width << i, nn.Sequential()
            for j in range(blocks):
                stage.append(block(layers, channels, inner, 2 if i > 0 and j == 0 else 1))
                channels = inner * block.expansion
            self.add_module(f"layer{i + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        if self.spec.family == "imagenet":
            out = self.maxpool(out)
        for i in range(len(self.spec.blocks)):
            out = self.get_submodule(f"layer{i + 1}")(out)
        return self.fc(torch.flatten(self.avgpool(out), 1))

    def lines(self) -> list[str]:
        """Return the stages as built."""
        spec, expansion = self.spec, BLOCKS[self.spec.block].expansion
        lines = [
            f"stem: {'3×3' if spec.family == 'cifar' else '7×7 stride 2, max-pool stride 2'}, 3→{spec.width}"
        ]
        channels = spec.width
        for i, blocks in enumerate(spec.blocks):
            wide = (spec.width << i) * expansion
            lines.append(
                f"layer{i + 1}: {blocks} × {BLOCKS[spec.block].__name__} {channels}→{wide}"
                + (", stride 2" if i else "")
            )
            channels = wide
        return lines


def _projection(layers: Layers, in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """Return a 1×1 convolution with its norm where the identity does not fit, else nothing."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(layers.conv(in_channels, channels, 1, stride), layers.norm(channels))
