"""Modules that read or change what lies outside them."""

import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn

from bench.oracle.stock import tolerance

EXACT = tolerance(torch.float64)


class Part(nn.Module):
    """convolution -> BatchNorm -> ReLU; a forward is the test's own."""

    def __init__(self, inside=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inside, 4, 3, padding=1), nn.BatchNorm2d(4)

    def body(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return self.body(x)


class Whole(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.first, self.part = Part(3), part

    def forward(self, x):
        return self.part(self.first(x))


def net(part):
    return frozen_convolutions(Whole(part)).double()
