"""Blocks by what people write in a forward: modes, attributes, buffers, draws, containers."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 4
HABITS = {}  # name -> class of a block (N, 4, H, W) -> the same


def habit(kind):
    HABITS[kind.__name__] = kind
    return kind


class Block(nn.Module):
    """convolution -> BatchNorm -> ReLU, and whatever the habit adds."""

    def __init__(self, draw: random.Random):
        super().__init__()
        self.conv, self.bn = (
            nn.Conv2d(WIDTH, WIDTH, draw.choice([1, 3]), padding="same", bias=draw.random() < 0.3),
            nn.BatchNorm2d(WIDTH),
        )
        self.build(draw)

    def build(self, draw):
        pass

    def body(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return self.body(x)


@habit
class Plain(Block):
    pass


@habit
class Residual(Block):
    def forward(self, x):
        out = self.bn(self.conv(x))
        out += x
        return F.relu(out, inplace=True)


@habit
class NoGrad(Block):
    def forward(self, x):
        with torch.no_grad():
            x = self.body(x)
        return x


@habit
class Decorated(Block):
    @torch.no_grad()
    def gate(self, x):
        return torch.sigmoid(x.mean((2, 3), keepdim=True))

    def forward(self, x):
        return self.body(x) * self.gate(x)


@habit
class Autocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
            return self.body(x)


@habit
class Checkpointed(Block):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, by):
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -ctx.by * gradient, None


class Same(torch.autograd.Function):
    """Returns what it is given: no operation is left to see."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return 3.0 * gradient


@habit
class Reversed(Block):
    def build(self, draw):
        self.by = draw.choice([0.5, 2.0])

    def forward(self, x):
        return Reverse.apply(self.body(x), self.by)


@habit
class Scaled(Block):
    def forward(self, x):
        return Same.apply(self.body(x))


@habit
class LeavesALoss(Block):
    def forward(self, x):
        x = self.body(x)
        self.penalty = x.square().mean()
        return x


@habit
class Counts(Block):
    def build(self, draw):
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x) * (1.0 + 0.1 * self.calls)


@habit
class CountsInABuffer(Block):
    def build(self, draw):
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(WIDTH, dtype=torch.float64))

    def forward(self, x):
        x = self.body(x)
        if self.training:
            self.seen += 1
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
        return x - self.mean.view(1, -1, 1, 1)


@habit
class Appends(Block):
    def build(self, draw):
        self.history = []

    def forward(self, x):
        x = self.body(x)
        self.history.append(x.detach().mean())
        return x


@habit
class ChosenByAttribute(Block):
    def build(self, draw):
        self.domain, self.bns = 0, nn.ModuleList([nn.BatchNorm2d(WIDTH) for _ in range(2)])

    def forward(self, x):
        return F.relu(self.bns[self.domain](self.conv(x)))


@habit
class ChosenByASetting(Block):
    def build(self, draw):
        self.settings = {"scale": 1.0, "names": ["relu"]}

    def forward(self, x):
        x = self.bn(self.conv(x))
        for name in self.settings["names"]:
            x = getattr(torch, name)(x)
        return x * self.settings["scale"]


@habit
class DrawsInPython(Block):
    def forward(self, x):
        return x if self.training and torch.rand(1) < 0.5 else self.body(x)


@habit
class DrawsByRandom(Block):
    def forward(self, x):
        return self.body(x) * (random.random() if self.training else 1.0)


@habit
class Noise(Block):
    def forward(self, x):
        x = self.body(x)
        return x + 0.1 * torch.randn(1, WIDTH, 1, 1, dtype=x.dtype) if self.training else x


@habit
class Drops(Block):
    def build(self, draw):
        self.drop = nn.Dropout2d(0.3)

    def forward(self, x):
        return F.dropout(self.drop(self.body(x)), 0.2, self.training)


class WrittenOut(nn.BatchNorm2d):
    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        averages = self.training and self.momentum is None  # all batches alike; in evaluation nothing moves
        momentum = 1.0 / float(self.num_batches_tracked) if averages else self.momentum or 0.0
        batch = self.training or self.running_mean is None
        return F.relu(
            F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, batch, momentum, self.eps
            )
        )


class Renamed(nn.BatchNorm2d):
    pass


@habit
class Subclassed(Block):
    def build(self, draw):
        self.bn = draw.choice([WrittenOut, Renamed])(WIDTH, momentum=draw.choice([None, 0.3]))


@habit
class DecidesByValues(Block):
    def forward(self, x):
        x = self.body(x)
        return x if x.mean() > 0.3 else 2.0 * x


@habit
class EditsInPlace(Block):
    def forward(self, x):
        y = x + 1.0
        z = y * 2.0
        y.add_(self.body(x).detach())
        return z + y.clone()


@habit
class Shapes(Block):
    def forward(self, x):
        n, c, *_ = x.shape
        flat = self.body(x).view(n, c, -1)
        return flat.view(*x.shape) + x.size(0)


@habit
class Branches(nn.ModuleDict):
    def __init__(self, draw):
        super().__init__({"left": Plain(draw), "right": Residual(draw)})

    def forward(self, x):
        return sum(branch(x) for branch in self.values())


GLOBAL = torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64).view(1, -1, 1, 1)


@habit
class Outside(Block):
    def forward(self, x):
        return self.body(x) * GLOBAL
