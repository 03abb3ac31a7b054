"""A network of your own, frozen and fused, in your own loop:  python examples/own_network.py"""

import torch
import torch.nn.functional as F
from torch import nn

import fastbn
from fastbn.data import batch, load


class Net(nn.Module):
    """Three convolutions, one of them with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        out = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(out)))
        return self.head(x.mean((2, 3)))


torch.manual_seed(0)
model = fastbn.fuse(fastbn.freeze(Net(), "bn+output"))
print(fastbn.explain(model))

digits = load("digits", "data").train
optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
for epoch in range(3):
    for indices in torch.randperm(len(digits)).split(64):
        loss = F.cross_entropy(model(batch(digits, indices, None)), digits.labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
