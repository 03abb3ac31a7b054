"""Networks of other people's habits, by how their graphs are built; and what of each runs fused or stock."""

import torch
import torch.nn.functional as F
from foreign_nets import (
    IN_PLACE,
    AddedIntoAnothersValue,
    AddedUnderAnotherName,
    Depthwise,
    DropoutAndCat,
    EditedAfterARead,
    EditedThroughAView,
    InPlace,
    Net,
    Pair,
    PreActivation,
    ReadTwice,
    Shared,
    SharedAcrossStock,
    SharedOutOfOrder,
    conv3,
)
from torch import nn


class AddedToItself(Net):
    def forward(self, x):
        n = self.a(x)
        return F.relu(self.b(F.relu(n + n)))


class Inception(Net):
    """Two branches of different depth that meet twice."""

    def __init__(self):
        super().__init__("abcde")

    def forward(self, x):
        x = F.relu(self.a(x))
        left = F.relu(self.b(x))
        right = F.relu(self.d(F.relu(self.c(x))))
        met = F.relu(self.e(left) + right)
        return met + left


class TwoProjections(Net):
    def __init__(self):
        super().__init__("a", left=Pair(4, 6, 1, stride=2), right=Pair(4, 6, stride=2), tail=Pair(6, 6))

    def forward(self, x):
        x = F.relu(self.a(x))
        x = torch.relu(torch.add(self.left(x), self.right(x)))
        return (self.tail(x).add(x)).relu()


class Sandwich(Net):
    """A stock operation between two units: fused as one they would wait for each other."""

    def __init__(self):
        super().__init__("abc")

    def forward(self, x):
        a = F.relu(self.a(x))
        b = F.relu(self.b(torch.sigmoid(a)))
        return F.relu(self.c(b) + a)


class SandwichOfBranches(Net):
    """a and b could be one region, and c and d; each pair with a stock operation across to the other."""

    def __init__(self):
        super().__init__("abcd", z=Pair(3, 4))

    def forward(self, x):
        a, z = F.relu(self.a(x)), F.relu(self.z(x))
        b = F.relu(self.b(a) + torch.sigmoid(z))
        c = F.relu(self.c(z) + torch.tanh(a))
        return F.relu(self.d(b) + c)


class TwoInTwoOut(Net):
    def __init__(self):
        super().__init__("ab", other=Pair(3, 4), far=Pair(3, 4))

    def forward(self, x, y):
        a = F.relu(self.a(x))
        b = F.relu(self.b(a) + self.other(y))
        return b, a, self.far(y).mean((1, 2, 3))


class Optional(Net):
    """Default arguments, and functional dropout that follows train() and eval()."""

    def __init__(self):
        super().__init__("ab")

    def forward(self, x, mask=None, scale: float = 1.0):
        x = F.dropout(F.relu(self.a(x)), 0.5, training=self.training)
        if mask is not None:
            x = x * mask
        return F.relu(self.b(x)) * scale


class UNet(Net):
    def __init__(self):
        super().__init__(
            "a", down=Pair(4, 8, stride=2), mid=Pair(8, 8), up=nn.ConvTranspose2d(8, 4, 2, 2), out=Pair(8, 4)
        )

    def forward(self, x):
        skip = F.relu(self.a(x))
        x = self.up(F.relu(self.mid(F.relu(self.down(F.max_pool2d(skip, 1))))))
        return F.relu(self.out(torch.cat([x, skip], 1)))


class Unused(Net):
    """c's result goes nowhere; its running statistics move all the same, its γ gets no gradient."""

    def __init__(self):
        super().__init__("abc")

    def forward(self, x):
        x = F.relu(self.a(x))
        F.relu(self.c(x))
        return F.relu(self.b(x))


class PlainNumbers(Net):
    """Additions that are not of two activations."""

    def __init__(self):
        super().__init__("ab")

    def forward(self, x):
        x = F.relu(self.a(x) + 1.5)
        return F.relu(torch.add(self.b(x), x, alpha=2))


class Misfits(Net):
    """Convolutions that the engine must leave alone, each for a reason of its own."""

    def __init__(self):
        super().__init__(
            "a",
            free=conv3(4),
            reflect=Pair(4, padding_mode="reflect"),
            trained=Pair(4),
            even=nn.Conv2d(4, 4, 2, padding="same"),
        )
        self.even_bn, self.biased = nn.BatchNorm2d(4), Pair(4)
        self.biased.conv.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        x = self.free(F.relu(self.a(x)))
        x = F.relu(self.trained(F.relu(self.reflect(x))))
        return self.biased(self.even_bn(self.even(x)))


class PlainParameters(Net):
    """A buffer and a parameter of the network itself, read between the units and as a residual of full
    size."""

    def __init__(self):
        super().__init__("ab")
        self.scale = nn.Parameter(torch.linspace(-1.0, 1.0, 4).view(4, 1, 1))
        self.register_buffer("shift", torch.linspace(0.0, 2.0, 4).view(4, 1, 1))

    def forward(self, x):
        return F.relu(self.b((F.relu(self.a(x)) + self.shift) * self.scale))


RELU, ADD = ("relu", ""), ("add", "")
NETS = {  # the convolutions of each region; what runs stock, with its reason
    PreActivation: (
        [["a.conv", "", "conv1", "conv2"]],  # a BatchNorm that reads no convolution has none
        [("last", ""), RELU, ("mean", "")],
    ),
    DropoutAndCat: ([["a.conv"], ["b.conv"], ["wide.conv", "d.conv"]], [("drop", ""), ("cat", "")]),
    Depthwise: ([["a.conv", "deep.conv", "point.conv", "grouped.conv"]], []),
    InPlace: (
        [["a.conv", "b.conv", "c.conv", "d.conv", "e.conv"]],
        # `out` is read again by the name that was changed
        [("f.conv", IN_PLACE), ("f.bn", ""), ("add_", ""), RELU],
    ),
    EditedAfterARead: (
        [["a.conv"]],
        [
            ("b.conv", IN_PLACE),
            ("b.bn", ""),
            ("mul", ""),
            ("add_", ""),
            ("c.conv", IN_PLACE),
            ("c.bn", ""),
            RELU,
            ADD,
        ],
    ),
    AddedIntoAnothersValue: (
        [["z.conv", "b.conv"]],
        [("a.conv", IN_PLACE), ("a.bn", ""), ("mul", ""), ("iadd", ""), ADD],
    ),
    AddedUnderAnotherName: (
        [["a.conv"], ["c.conv"]],
        [("b.conv", IN_PLACE), ("b.bn", ""), ("iadd", ""), ADD],
    ),
    EditedThroughAView: (
        [["a.conv", "c.conv"]],
        [("b.conv", IN_PLACE), ("b.bn", ""), ("flatten", ""), ("sub_", ""), RELU],
    ),
    Shared: ([["a.conv", "b.conv", "b.conv"]], [ADD]),
    SharedOutOfOrder: ([["a.conv", "b.conv"], ["b.conv"]], [ADD, RELU, ADD, RELU]),
    SharedAcrossStock: ([["a.conv", "c.conv"], ["b.conv", "b.conv"]], [("sigmoid", ""), ("tanh", ""), ADD]),
    ReadTwice: ([["a.conv"], ["b.conv", "c.conv"]], [RELU]),
    AddedToItself: ([["a.conv"], ["b.conv"]], [ADD, RELU]),
    Inception: ([["a.conv", "b.conv", "c.conv", "d.conv", "e.conv"]], [ADD]),
    TwoProjections: ([["a.conv", "left.conv", "right.conv", "tail.conv"]], []),
    Sandwich: ([["a.conv"], ["b.conv", "c.conv"]], [("sigmoid", "")]),
    SandwichOfBranches: (
        [["z.conv"], ["a.conv", "b.conv"], ["c.conv", "d.conv"]],
        [("sigmoid", ""), ("tanh", "")],
    ),
    TwoInTwoOut: ([["a.conv", "b.conv", "other.conv"], ["far.conv"]], [("mean", "")]),
    Optional: ([["a.conv"], ["b.conv"]], [("dropout", ""), ("mul", "")]),
    UNet: (
        [["a.conv"], ["down.conv", "mid.conv"], ["out.conv"]],
        [("max_pool2d", ""), ("up", "ConvTranspose2d is not nn.Conv2d"), ("cat", "")],
    ),
    Unused: ([["a.conv", "c.conv", "b.conv"]], []),
    PlainNumbers: ([["a.conv"], ["b.conv"]], [ADD, RELU, ADD, RELU]),
    PlainParameters: ([["a.conv"], ["b.conv"]], [ADD, ("mul", "")]),
    Misfits: (
        [["a.conv", "free"]],
        [
            ("reflect.conv", "padding_mode 'reflect'"),
            ("reflect.bn", ""),
            RELU,
            ("trained.conv", "its weight or bias trains"),
            ("trained.bn", ""),
            RELU,
            ("even", "padding 'same' with an even kernel"),
            ("even_bn", ""),
            ("biased.conv", "its weight or bias trains"),
            ("biased.bn", ""),
        ],
    ),
}
