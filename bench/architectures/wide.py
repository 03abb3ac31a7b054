"""WRN-28-10 for 32×32 images, which neither torchvision nor timm has: BatchNorm before each convolution.

Source: S. Zagoruyko, N. Komodakis, Wide Residual Networks, BMVC 2016, without dropout."""

from __future__ import annotations

from torch import Tensor, nn


class WideBlock(nn.Module):
    """BatchNorm, ReLU and a 3×3 convolution, twice; where the shape changes, the shortcut is a 1×1
    convolution of the first ReLU's result."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(self.relu2(self.bn2(self.conv1(active))))


def wrn_28_10(weights: None = None) -> nn.Module:
    """Return the network, randomly initialised, for ten classes. weights: only None, as torchvision's
    builders spell it."""
    widths, layers = (160, 320, 640), [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    inputs = 16
    for stage, width in enumerate(widths):
        for block in range(4):
            layers.append(WideBlock(inputs, width, 2 if stage and not block else 1))
            inputs = width
    head = (nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))
    return nn.Sequential(*layers, *head)
