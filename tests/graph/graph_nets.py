"""Networks whose graphs are read."""

import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from regions import conv
from torch import fx, nn

from fastbn.graph.activations import IDENTITY, NAMES, RELU
from fastbn.graph.match import match
from fastbn.graph.regions import Join, Region


def block():
    """Value 0 comes in; 1 = relu(a(0)); 2 = relu(b(1) + projection(0)), handed out; 3 = c(2) + 2; 4 =
    relu(d(2)), handed out."""
    a, b, p = conv("a", 0, 3, 4, stride=2), conv("b", 1, 4, 6, slot=4), conv("p", 0, 3, 6, 1, 2, 0, slot=10)
    c, d = conv("c", 2, 6, 6, slot=16), conv("d", 2, 6, 2, padding=0, slot=22)
    joins = (
        Join(1, (a,), None, RELU),
        Join(2, (b, p), None, RELU),
        Join(3, (c,), 2, IDENTITY),
        Join(4, (d,), None, RELU),
    )
    return Region(1, joins, (2, 4))


class Net(nn.Module):
    """A stem, a projection block, a stock sigmoid, and two convolutions behind it that meet the block
    again."""

    def __init__(self):
        super().__init__()
        for name, inside, outside in (
            ("a", 3, 4),
            ("b", 4, 4),
            ("p", 4, 4),
            ("c", 4, 4),
            ("d", 4, 4),
            ("e", 4, 4),
        ):
            self.add_module(f"{name}", nn.Conv2d(inside, outside, 3, padding=1, bias=False))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(outside))

    def forward(self, x):
        a = F.relu(self.a_bn(self.a(x)))
        block = F.relu(self.b_bn(self.b(a)) + self.p_bn(self.p(a)))
        c = self.c_bn(self.c(torch.sigmoid(block)))
        d = F.relu(self.d_bn(self.d(c)))
        return F.relu(self.e_bn(self.e(d)) + block)


def traced(model=None, refuse=()):
    model = frozen_convolutions(model or Net())
    graph = fx.Tracer().trace(model)
    units, refused = match(
        graph,
        dict(model.named_modules()),
        lambda name, conv: "not this one" if name in refuse else None,
        NAMES,
    )
    return graph, units, refused


def described(units):
    return [
        (
            [str(c.target) for c, _ in unit.convs],
            unit.residual and str(unit.residual),
            unit.function == RELU,
            str(unit.output),
        )
        for unit in units
    ]
