"""FastBNOnlyResNet: an ordinary ResNet with torchvision's names, seeded weights, everything but BatchNorm frozen, and fused.

Source   He et al. 2015, Deep Residual Learning (both families, post-activation); the bottleneck's stride is on its 3×3, as torchvision's.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastbn.engine import fuse
from fastbn.models.families import resolve
from fastbn.models.weights import draw, load_weights
from fastbn.trainable import count, freeze


class BasicBlock(nn.Module):
    """(N, in_channels, H, W) -> (N, channels, ⌈H/stride⌉, ⌈W/stride⌉): two 3×3 convolutions beside an identity or a projection."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(out + identity)


class Bottleneck(nn.Module):
    """(N, in_channels, H, W) -> (N, 4·channels, ⌈H/stride⌉, ⌈W/stride⌉): 1×1, 3×3, 1×1 beside an identity or a projection."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample = _projection(in_channels, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(out + identity)


BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class FastBNOnlyResNet(nn.Module):
    """A ResNet of `depth` layers, images (N, 3, H, W) -> logits (N, num_classes), in which only BatchNorm's γ and β require grad.

    depth: 6n+2 (CIFAR family: three stages of n basic blocks, no max-pooling) or 18, 34, 50, 101, 152, 200 (ImageNet family).
    width: channels of the first stage, doubled at each later one; 16 (CIFAR) or 64 (ImageNet).
    family: "cifar" or "imagenet"; inferred from the depth except for 50, 152 and 200, which are both.
    seed: of every parameter's draw, a stream a name; torch's global generators are neither read nor advanced.
    engine: what runs it, as in `fastbn.fuse`.
    weights: a torchvision-keyed .safetensors or .pth file, see `load_weights`.
    gamma_init, beta_init, weight_init: a name from `fastbn.models.inits`.

    Parameters are of torch's default dtype on its default device; on "meta" nothing is drawn.
    Attributes: `spec` (everything above, resolved), `weights_file` and `weights_sha256` (None without a file).
    Raises UsageError for an argument that cannot be.
    """

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
    ):
        super().__init__()
        self.spec = spec = resolve(depth, num_classes, width, family, seed, gamma_init, beta_init, weight_init)
        self.weights_file = None if weights is None else os.fspath(weights)
        self.weights_sha256: str | None = None
        block = BLOCKS[spec.block]
        device = torch.get_default_device()
        with torch.device("meta"):  # there torch's own initialisers cost nothing and draw nothing
            if spec.family == "cifar":
                self.conv1 = nn.Conv2d(3, spec.width, 3, 1, 1, bias=False)
                self.bn1 = nn.BatchNorm2d(spec.width)
            else:
                self.conv1 = nn.Conv2d(3, spec.width, 7, 2, 3, bias=False)
                self.bn1 = nn.BatchNorm2d(spec.width)
                self.maxpool = nn.MaxPool2d(3, 2, 1)
            channels = spec.width
            for i, blocks in enumerate(spec.blocks):
                inner, stage = spec.width << i, nn.Sequential()
                for j in range(blocks):
                    stage.append(block(channels, inner, 2 if i > 0 and j == 0 else 1))
                    channels = inner * block.expansion
                self.add_module(f"layer{i + 1}", stage)
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.fc = nn.Linear(channels, spec.num_classes)
        self.to_empty(device=device)
        draw(self, spec)
        if self.weights_file is not None:
            self.weights_sha256 = load_weights(self, self.weights_file)
        freeze(self, "bn")
        fuse(self, engine)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        if self.spec.family == "imagenet":
            out = self.maxpool(out)
        for i in range(len(self.spec.blocks)):
            out = self.get_submodule(f"layer{i + 1}")(out)
        return self.fc(torch.flatten(self.avgpool(out), 1))

    def __repr__(self) -> str:
        """The stages as built, not their modules: 866 layers would print 1,900 lines."""
        spec, expansion = self.spec, BLOCKS[self.spec.block].expansion
        lines = [", ".join(f"{key}={value!r}" for key, value in spec.asdict().items()) + f", weights={self.weights_file!r}"]
        lines.append(f"stem: {'3×3' if spec.family == 'cifar' else '7×7 stride 2, max-pool stride 2'}, 3→{spec.width}")
        channels = spec.width
        for i, blocks in enumerate(spec.blocks):
            wide = (spec.width << i) * expansion
            lines.append(f"layer{i + 1}: {blocks} × {BLOCKS[spec.block].__name__} {channels}→{wide}" + (", stride 2" if i else ""))
            channels = wide
        some, total = count(self)
        lines.append(f"fc: {self.fc!r}")
        lines.append(f"trainable: {some:,} of {total:,} parameters")
        return f"{type(self).__name__}({lines[0]})" + "".join(f"\n  {line}" for line in lines[1:])


def _projection(in_channels: int, channels: int, stride: int) -> nn.Sequential | None:
    """A 1×1 convolution with its BN where the identity does not fit, else nothing."""
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
