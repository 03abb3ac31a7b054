"""Networks of the families that people train, and how many of their convolutions run fused."""

import copy

import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that spells its forward out, and an activation that it holds."""

    def __init__(self, channels, act=None, drop=0.0, **options):
        super().__init__(channels, **options)
        self.drop = nn.Dropout(drop) if drop else nn.Identity()
        self.act = act if act is not None else nn.Identity()

    def forward(self, x):
        share = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        batch = self.training or (self.running_mean is None and self.running_var is None)
        moving = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if moving else (None, None)
        return self.act(self.drop(F.batch_norm(x, mean, var, self.weight, self.bias, batch, share, self.eps)))


class Inverted(nn.Module):
    """Widen by 1×1, filter each channel by itself, narrow by 1×1; added to what came in where the shapes
    allow."""

    def __init__(self, inside, outside, act, kernel=3, stride=1, widen=4, gate=False):
        super().__init__()
        wide = inside * widen
        self.widen = nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide), copy.deepcopy(act)
        )
        self.filter = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.norm, self.act = nn.BatchNorm2d(wide), copy.deepcopy(act)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.SiLU(), nn.Conv2d(4, wide, 1), nn.Hardsigmoid()
        )
        self.gated = gate
        self.narrow, self.last, self.drop = (
            nn.Conv2d(wide, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.Dropout(0.0),
        )
        self.adds = stride == 1 and inside == outside

    def forward(self, x):
        z = self.act(self.norm(self.filter(self.widen(x))))
        z = z * self.gate(z) if self.gated else z
        z = self.drop(self.last(self.narrow(z)))
        return x + z if self.adds else z


class Grouped(nn.Module):
    """A bottleneck whose 3×3 goes by groups."""

    def __init__(self, inside, wide, outside, groups, stride=1):
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(inside, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.b, self.b_bn = (
            nn.Conv2d(wide, wide, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(wide),
        )
        self.c, self.c_bn = nn.Conv2d(wide, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.way = nn.Identity()
        if stride > 1 or inside != outside:
            self.way = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x):
        z = F.relu(self.a_bn(self.a(x)))
        z = self.c_bn(self.c(F.relu(self.b_bn(self.b(z)))))
        return F.relu(z + self.way(x))


class Shuffled(nn.Module):
    """Half of the channels pass, half are filtered; then the two are dealt out."""

    def __init__(self, half):
        super().__init__()
        self.a, self.a_bn = nn.Conv2d(half, half, 1), NormAct(half, nn.ReLU(inplace=True))
        self.b, self.b_bn = nn.Conv2d(half, half, 5, padding=2, groups=half), NormAct(half)
        self.c, self.c_bn = nn.Conv2d(half, half, 1), NormAct(half, nn.LeakyReLU(0.1))

    def forward(self, x):
        left, right = x.chunk(2, 1)
        right = self.c_bn(self.c(self.b_bn(self.b(self.a_bn(self.a(right))))))
        return torch.cat([left, right], 1).unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class PreActivated(nn.Module):
    """BatchNorm and activation before each convolution, a convolution's output added as it is; a shortcut
    by 1×1 of what is activated."""

    def __init__(self, inside, outside, act=None, stride=1, bias=False):
        super().__init__()
        norm = (
            (lambda c: NormAct(c, copy.deepcopy(act)))
            if act
            else (lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(inplace=True)))
        )
        self.a_bn, self.a = norm(inside), nn.Conv2d(inside, outside, 3, stride, 1, bias=bias)
        self.b_bn, self.b = norm(outside), nn.Conv2d(outside, outside, 3, 1, 1, bias=bias)
        self.way = (
            nn.Conv2d(inside, outside, 1, stride, bias=bias) if stride > 1 or inside != outside else None
        )

    def forward(self, x):
        z = self.a_bn(x)
        short = x if self.way is None else self.way(z)
        return self.b(self.b_bn(self.a(z))) + short


class Dense(nn.Module):
    """Each layer reads all the layers before it."""

    def __init__(self, channels, grow, layers):
        super().__init__()
        sizes = [channels + i * grow for i in range(layers)]
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(c),
                nn.ReLU(),
                nn.Conv2d(c, 8, 1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, grow, 3, 1, 1),
            )
            for c in sizes
        )
        self.norm, self.last = (
            nn.BatchNorm2d(channels + layers * grow),
            nn.Conv2d(channels + layers * grow, 6, 1),
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return F.avg_pool2d(self.last(F.relu(self.norm(x))), 2)


class TwoWays(nn.Module):
    """A value that a depthwise and a dense convolution read, and their sum."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12)
        self.a, self.a_bn = nn.Conv2d(12, 12, 3, 2, 1, groups=12), nn.BatchNorm2d(12)
        self.b, self.b_bn = nn.Conv2d(12, 12, 1, 2), nn.BatchNorm2d(12)
        self.c, self.c_bn = nn.Conv2d(12, 24, 3, 2, 1, groups=4), nn.BatchNorm2d(24)

    def forward(self, x):
        x = F.hardswish(self.stem_bn(self.stem(x)))
        return F.silu(self.a_bn(self.a(x)) + self.b_bn(self.b(x))), self.c_bn(self.c(x))


class Stem(nn.Module):
    """A stem before blocks."""

    def __init__(self, channels, act, *blocks):
        super().__init__()
        self.conv, self.norm, self.act = (
            nn.Conv2d(3, channels, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            act,
        )
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(self.act(self.norm(self.conv(x))))


FAMILIES = {  # how many convolutions, of how many run fused, in how many regions
    "relu6": (
        lambda: Stem(
            8, nn.ReLU6(), Inverted(8, 8, nn.ReLU6(inplace=True)), Inverted(8, 12, nn.ReLU6(), stride=2)
        ),
        7,
        7,
        1,
    ),
    "hardswish": (
        lambda: Stem(
            8, nn.Hardswish(), Inverted(8, 8, nn.Hardswish(), 5, gate=True), Inverted(8, 8, nn.ReLU())
        ),
        7,
        9,
        2,
    ),
    "silu": (
        lambda: Stem(8, nn.SiLU(), Inverted(8, 8, nn.SiLU(), 5, 2), Inverted(8, 8, nn.SiLU(), 7)),
        7,
        7,
        1,
    ),
    "by groups of 4": (lambda: Stem(16, nn.ReLU(), Grouped(16, 32, 24, 8), Grouped(24, 32, 24, 8)), 8, 8, 1),
    "by groups of 24": (
        lambda: Stem(16, nn.ReLU(), Grouped(16, 48, 48, 2, 2), Grouped(48, 48, 48, 2)),
        8,
        8,
        1,
    ),
    "shuffled": (lambda: Stem(12, nn.GELU(), Shuffled(6), Shuffled(6)), 7, 7, 3),
    "two ways": (TwoWays, 4, 4, 1),
    "pre-activation": (
        lambda: Stem(
            8,
            nn.ReLU(),
            PreActivated(8, 8),
            PreActivated(8, 12, stride=2),
            PreActivated(12, 12, bias=True),
            NormAct(12),
        ),
        8,
        8,
        1,
    ),
    "pre-activation by SiLU": (
        lambda: Stem(
            8, nn.SiLU(), PreActivated(8, 12, nn.SiLU()), PreActivated(12, 12, nn.SiLU(), bias=True)
        ),
        6,
        6,
        1,
    ),
    "dense": (lambda: Stem(8, nn.ReLU(), Dense(8, 4, 3)), 8, 8, 4),
}


def family(name):
    return frozen_convolutions(FAMILIES[name][0]())
