"""Networks of other people's habits, by what they do with a value."""

import torch
import torch.nn.functional as F
from torch import nn

IN_PLACE = "it shares a value with an in-place operation"


def conv3(inside, outside=None, **options):
    return nn.Conv2d(inside, outside or inside, 3, padding=1, bias=False, **options)


class Pair(nn.Module):
    """convolution -> BatchNorm, no ReLU."""

    def __init__(self, inside, outside=None, kernel=3, **options):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside or inside, kernel, padding=kernel // 2, bias=False, **options)
        self.bn = nn.BatchNorm2d(outside or inside)

    def forward(self, x):
        return self.bn(self.conv(x))


class Net(nn.Module):
    """Pairs a, b, c, … of 3 -> 4 (the first) and 4 -> 4 channels, and a head; what joins them is the
    test's own."""

    def __init__(self, pairs="ab", **modules):
        super().__init__()
        for i, name in enumerate(pairs):
            self.add_module(name, Pair(4 if i else 3, 4))
        for name, module in modules.items():
            self.add_module(name, module)


class PreActivation(Net):
    """BatchNorm -> ReLU -> convolution: a BatchNorm with no convolution before it, and one that has."""

    def __init__(self):
        super().__init__(
            "a",
            first=nn.BatchNorm2d(4),
            conv1=conv3(4),
            second=nn.BatchNorm2d(4),
            conv2=conv3(4),
            last=nn.BatchNorm2d(4),
        )

    def forward(self, x):
        x = self.a(x)
        out = self.conv1(F.relu(self.first(x)))
        out = self.conv2(F.relu(self.second(out)))
        return F.relu(self.last(out + x)).mean((2, 3))


class DropoutAndCat(Net):
    def __init__(self):
        super().__init__("ab", drop=nn.Dropout(0.4), wide=Pair(8, 4), d=Pair(4, 4))

    def forward(self, x):
        a = F.relu(self.a(x))
        a = self.drop(a)
        return F.relu(self.d(F.relu(self.wide(torch.cat([a, F.relu(self.b(a))], 1)))))


class Depthwise(Net):
    def __init__(self):
        super().__init__(
            "a", deep=Pair(4, 4, groups=4), point=Pair(4, 8, 1), grouped=Pair(8, 8, groups=2, stride=2)
        )

    def forward(self, x):
        x = F.relu6(self.a(x))
        return F.relu(self.grouped(self.point(F.relu(self.deep(x)))))


class InPlace(Net):
    """Every in-place spelling of torchvision's and timm's blocks."""

    def __init__(self):
        super().__init__("abcdef", relu=nn.ReLU(inplace=True))

    def forward(self, x):
        x = self.relu(self.a(x))
        out = self.relu(self.b(x))
        out = self.c(out)
        out += x
        out = F.relu_(out)
        identity = out
        out = self.d(out).relu_()
        out = torch.relu_(self.e(out))
        out = self.f(out)
        out.add_(identity)
        return F.relu(out, inplace=True)


class EditedAfterARead(Net):
    """b's value is read, and then changed under its reader's eyes: all that touches it stays stock, in the
    trace's order."""

    def __init__(self):
        super().__init__("abc")

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        before = x * 2.0
        x.add_(1.0)
        return F.relu(self.c(x)) + before


class AddedIntoAnothersValue(Net):
    def __init__(self):
        super().__init__("ab", z=Pair(3, 4))

    def forward(self, x):
        out = F.relu(self.z(x))
        x = self.a(x)
        before = x * 2.0
        x += self.b(out)
        return x + before


class AddedUnderAnotherName(Net):
    """`+=` changes what both names hold."""

    def __init__(self):
        super().__init__("abc")

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        other = x
        x += 1.5
        return F.relu(self.c(x)) + other


class EditedThroughAView(Net):
    """The name that is changed is a view of the value that b reads."""

    def __init__(self):
        super().__init__("abc", same=nn.Identity())

    def forward(self, x):
        x = F.relu(self.c(self.a(x)))
        x = self.b(x)
        flat = self.same(x).flatten(1)
        flat.sub_(1.0)
        return x.relu()


class Shared(Net):
    """One convolution and BatchNorm called twice: its statistics move twice, its gradients add up."""

    def __init__(self):
        super().__init__("ab")

    def forward(self, x):
        x = F.relu(self.a(x))
        return F.relu(self.b(F.relu(self.b(x)))) + x


class SharedOutOfOrder(Net):
    """b's first call is used last: the running average must still see it first."""

    def __init__(self):
        super().__init__("ab")

    def forward(self, x):
        x = F.relu(self.a(x))
        early = self.b(x)
        late = F.relu(self.b(x + 3.0))
        return F.relu(early + late)


class SharedAcrossStock(Net):
    """b's two calls read stock values, between which another region runs on."""

    def __init__(self):
        super().__init__("abc")

    def forward(self, x):
        a = F.relu(self.a(x))
        first = self.b(torch.sigmoid(a))
        second = self.b(torch.tanh(a) + 3.0)
        return F.relu(self.c(a)) + first + second


class ReadTwice(Net):
    def __init__(self):
        super().__init__("abc")

    def forward(self, x):
        n = self.a(x)
        return F.relu(self.b(F.relu(n))) + self.c(n)
