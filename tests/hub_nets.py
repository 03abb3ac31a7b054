"""Networks as people bring them from elsewhere: torchvision's ResNet in both kinds of blocks, and timm's
BatchNorm with an activation in it. Small, with every name as there."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.oracle.networks import scattered


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += identity
        return self.relu(out)


class VisionResNet(nn.Module):
    """torchvision's ResNet, of this width in place of 64."""

    def __init__(self, block=BasicBlock, layers=(1, 1), width: int = 8, classes: int = 5):
        super().__init__()
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for i, count in enumerate(layers):
            blocks = [self._block(block, width << i, 1 + (i > 0))]
            blocks += [self._block(block, width << i, 1) for _ in range(count - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.layers = len(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.inplanes, classes)

    def _block(self, block, planes: int, stride: int) -> nn.Module:
        downsample, out = None, planes * block.expansion
        if stride > 1 or self.inplanes != out:
            conv = nn.Conv2d(self.inplanes, out, 1, stride, bias=False)
            downsample = nn.Sequential(conv, nn.BatchNorm2d(out))
        made = block(self.inplanes, planes, stride, downsample)
        self.inplanes = out
        return made

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for i in range(self.layers):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


class BatchNormAct2d(nn.BatchNorm2d):
    """timm's: a BatchNorm whose forward is spelled out in Python, with the activation in it."""

    def __init__(self, channels: int, act: type[nn.Module] = nn.ReLU):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act()

    def forward(self, x: Tensor) -> Tensor:
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        batch = self.training or (self.running_mean is None and self.running_var is None)
        x = F.batch_norm(
            x,
            self.running_mean if not self.training or self.track_running_stats else None,
            self.running_var if not self.training or self.track_running_stats else None,
            self.weight,
            self.bias,
            batch,
            factor,
            self.eps,
        )
        return self.act(self.drop(x))


class ConvNormAct(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = BatchNormAct2d(outputs, nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class TimmNet(nn.Module):
    """A stem, depthwise-separable blocks with a shortcut, and timm's head."""

    def __init__(self, width: int = 8, classes: int = 5):
        super().__init__()
        self.stem = ConvNormAct(3, width, 3, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvNormAct(width, width, 3, 1, width), ConvNormAct(width, width, 1))
            for _ in range(2)
        )
        self.head_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x) + x
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.head_norm(self.forward_features(x).mean((2, 3))))


class Pooled(nn.Module):
    """transformers' ResNet: an output object's worth of names, and an embedder that holds the stem."""

    def __init__(self, width: int = 8, classes: int = 5):
        super().__init__()
        self.resnet = nn.Module()
        self.resnet.embedder = nn.ModuleDict(
            {
                "convolution": nn.Conv2d(3, width, 3, 2, 1, bias=False),
                "normalization": nn.BatchNorm2d(width),
            }
        )
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(width, classes))

    def forward(self, pixel_values: Tensor) -> Tensor:
        stem = self.resnet.embedder
        hidden = F.relu(stem["normalization"](stem["convolution"](pixel_values)))
        return self.classifier(hidden.mean((2, 3), keepdim=True))


NETWORKS = {
    "torchvision's basic blocks": VisionResNet,
    "torchvision's bottlenecks": lambda **options: VisionResNet(Bottleneck, **options),
    "timm's": TimmNet,
    "transformers'": Pooled,
}


def drawn(name: str, seed: int = 0, **options) -> nn.Module:
    """Return a network with its weights from a seed, as a download gives the same ones everywhere."""
    torch.manual_seed(seed)
    return scattered(NETWORKS[name](**options), seed).eval()
