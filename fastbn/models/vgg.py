"""VGG-11, 13, 16 and 19 with BatchNorm for 32×32 images.

Source   Simonyan, Zisserman 2014, table 1 (A, B, D, E); the head and the biased convolutions as in open_lth's
CIFAR networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastbn.models.families import Spec
from fastbn.models.layers import Layers
from fastbn.models.network import Network

# 3×3 convolutions between max-pools
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
GROWTH = (1, 2, 4, 8, 8)  # channels of each stage, in widths


class VGG(Network):
    """Images (N, 3, H, W), H and W at least 16, -> logits: five stages of 3×3 convolutions, a max-pool
    between two, then the mean."""

    def build(self, spec: Spec) -> None:
        layers, channels = Layers(spec), 3
        self.activation = layers.activation
        for i, count in enumerate(STAGES[spec.depth]):
            stage = nn.ModuleList()
            for _ in range(count):
                wide = spec.width * GROWTH[i]
                stage.append(nn.ModuleDict({"conv": layers.conv(channels, wide, 3), "bn": layers.norm(wide)}))
                channels = wide
            self.add_module(f"layer{i + 1}", stage)
        self.maxpool = nn.MaxPool2d(2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, spec.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(GROWTH)):
            if i:
                x = self.maxpool(x)
            for block in self.get_submodule(f"layer{i + 1}").children():
                assert isinstance(block, nn.ModuleDict)
                x = self.activation(block["bn"](block["conv"](x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def lines(self) -> list[str]:
        stages = zip(STAGES[self.spec.depth], GROWTH, strict=True)
        return [
            f"layer{i + 1}: {count} × 3×3 to {self.spec.width * growth}"
            for i, (count, growth) in enumerate(stages)
        ]
