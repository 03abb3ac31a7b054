"""Networks that are not ours: fused equals stock, and explain() says exactly what runs where."""

import random

import pytest
import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import images
from bench.oracle.stock import assert_like_stock, assert_same, error, fused, run, stock, tolerance
from fastbn.engine import fuse
from fastbn.models.export import to_torch
from fastbn.planning.explain import explain

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
CHECKS_OF_CONSTANTS = {"_assert", "_assert_is_none", "eq"}  # what a trace adds for an argument that it fixed


def prepared(kind):
    net = frozen_convolutions(kind())
    if kind is Misfits:
        net.trained.conv.weight.requires_grad_(True)
        net.biased.conv.bias.requires_grad_(True)
    return net


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", NETS)
def test_like_stock(kind, training):
    inputs = [images(3, seed=1, grad=True), images(3, seed=2)][: 2 if kind is TwoInTwoOut else 1]
    assert_like_stock(prepared(kind).train(training), *inputs, calls=2)


@pytest.mark.parametrize("kind", NETS)
def test_explain_is_true(kind):
    regions, left = NETS[kind]
    graph = explain(fused(prepared(kind))).graph
    assert [[conv.name for conv in region.convs] for region in graph.regions] == regions
    assert [item for item in graph.stock if item[0] not in CHECKS_OF_CONSTANTS] == left


def test_edits_that_only_no_grad_allows():
    """A convolution reads a value that is edited afterwards: autograd would refuse, inference does not."""

    class Edited(Net):
        def __init__(self):
            super().__init__("abcd")

        def forward(self, x):
            x = self.b(F.relu(self.a(x)))
            early = self.c(x)
            x.view(-1).mul_(-2.0)
            return self.d(x) + early

    net = frozen_convolutions(Edited()).double()
    with torch.no_grad():
        assert error(fused(net)(images(2)), stock(net)(images(2))) <= tolerance(torch.float64)


def test_an_input_that_the_network_edits_is_edited():
    class Edits(Net):
        def forward(self, x, y):
            x += self.a(y)
            return F.relu(self.b(F.relu(x)))

    net = frozen_convolutions(Edits()).double()
    ours, theirs = images(2, channels=4), images(2, channels=4)
    assert error(fused(net)(ours, images(2)), stock(net)(theirs, images(2))) <= tolerance(torch.float64)
    assert error(ours, theirs) <= tolerance(torch.float64)
    assert not torch.equal(ours, images(2, channels=4))


def test_a_broadcast_addition_runs_its_region_stock():
    class Broadcast(Net):
        def __init__(self):
            super().__init__("ab", squeeze=nn.AdaptiveAvgPool2d(1), gate=Pair(4, 4, 1))

        def forward(self, x):
            x = F.relu(self.a(x))
            return F.relu(self.gate(self.squeeze(x)) + self.b(x))

    assert_like_stock(
        frozen_convolutions(Broadcast()),
        images(3, grad=True),
        calls=2,
        warning="broadcasts (3, 4, 1, 1) and (3, 4, 8, 8)",
    )


def test_an_addition_of_a_number_that_the_shape_gives():
    class Counted(Net):
        def forward(self, x):
            return F.relu(self.b(F.relu(self.a(x))) + x.shape[0])

    assert_like_stock(
        frozen_convolutions(Counted()), images(3, grad=True), warning="an input is 3, not a tensor"
    )


def test_exchanged_parameters_and_buffers_are_seen():
    net = fused(frozen_convolutions(PlainParameters()))
    run(net, images(2, dtype=torch.float32))
    net.double()  # gives the model another buffer
    net.scale = nn.Parameter(torch.full((4, 1, 1), 2.0, dtype=torch.float64))
    net.shift = torch.full((4, 1, 1), 5.0, dtype=torch.float64)
    theirs = stock(net)
    assert_same(run(net, images(2)), run(theirs, images(2)), tolerance(torch.float64))


def test_one_module_of_ones_own_put_to_train():
    """Monte-Carlo dropout: the model in eval, its dropout not."""

    class Drop(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, self.training)

    class Dropped(Net):
        def __init__(self):
            super().__init__("ab", drop=Drop())

        def forward(self, x):
            return self.b(self.drop(F.relu(self.a(x))))

    net = fused(frozen_convolutions(Dropped()).double().eval())
    for training in (False, True, False):
        net.drop.train(training)
        theirs = stock(net)
        assert_same(run(net, images(2)), run(theirs, images(2)), tolerance(torch.float64))


def test_a_backward_through_one_of_two_outputs():
    """What the gradient does not reach has none: not zeros, which an optimizer would decay and average."""

    class Forked(Net):
        def forward(self, x):
            x = F.relu(self.a(x))
            return F.relu(self.b(x)), x

    net = frozen_convolutions(Forked()).double()
    ours, theirs = fused(net), stock(net)
    for model in (ours, theirs):
        z = model(images(2))[1]
        z.backward(torch.linspace(-1.0, 1.0, z.numel()).view_as(z).double())
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        assert mine.grad is None or error(mine.grad, other.grad) <= tolerance(torch.float64)


def test_default_arguments_given():
    net = frozen_convolutions(Optional()).double().eval()
    ours, theirs, x, mask = fused(net), stock(net), images(2), images(2, channels=4)
    for extra in ({}, {"scale": 2.5}, {"scale": -1.0}, {"mask": mask}, {"mask": mask, "scale": 3.0}):
        assert error(ours(x, **extra), theirs(x, **extra)) <= tolerance(torch.float64)
    assert error(ours(x, mask, 0.5), theirs(x, mask, 0.5)) <= tolerance(torch.float64)


def test_an_argument_that_a_trace_cannot_fix_runs_stock():
    class Chosen(Net):
        def forward(self, x, choose=None):
            return F.relu(self.b(F.relu(choose(self.a(x)))))

    net = frozen_convolutions(Chosen()).double().eval()
    with pytest.warns(UserWarning, match="something other than tensors and plain values: a function"):
        assert error(fused(net)(images(2), lambda x: 2 * x), stock(net)(images(2), lambda x: 2 * x)) <= 1e-9


def test_what_cannot_be_traced_runs_stock_and_names_the_line():
    class Deciding(Net):
        def forward(self, x):
            x = self.a(x)
            return self.b(x) if x.sum() > 0 else x

    net = frozen_convolutions(Deciding()).double().eval()
    ours, theirs = fused(net), stock(net)
    with pytest.warns(
        UserWarning,
        match=r"fastbn runs Deciding stock in this call: test_engine_foreign\.py:\d+: .*control flow",
    ) as caught:
        for sign in (1.0, -1.0, 1.0):
            assert error(ours(sign * images(2)), theirs(sign * images(2))) == 0.0
    assert len(caught) == 1
    (what, why), *rest = explain(ours).graph.stock
    assert what == "Deciding" and "control flow" in why and not rest and not explain(ours).graph.regions
    with pytest.raises(
        TypeError,
        match=r"Deciding has no torch.fx trace .*test_engine_foreign\.py:\d+.* for example model\.backbone",
    ):
        to_torch(net)
    assert "forward" not in vars(fuse(ours, "stock"))


def test_a_part_of_a_network():
    """The remedy works, and fusing the whole around a fused part does too."""

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.fc = Inception(), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.backbone(x).mean((2, 3)))

    net = frozen_convolutions(Head()).double()
    theirs, part = stock(net), stock(net)
    fuse(part.backbone, "reference")
    expected = run(theirs, images(2))
    assert_same(run(part, images(2)), expected, tolerance(torch.float64))
    whole = fused(part)
    theirs = stock(part)
    fuse(theirs.backbone, "stock")
    assert_same(run(whole, images(2)), run(theirs, images(2)), tolerance(torch.float64))


class Random(nn.Module):
    """A random directed graph: pairs, additions, ReLUs and stock operations, each on values that came
    before."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.stem, self.steps = Pair(3, 4), []
        self.pairs = nn.ModuleList([Pair(4, 4)])
        for made in range(1, 13):
            kind = draw.choice(["pair", "pair", "pair", "add", "add", "relu", "relu", "tanh"])
            recent = max(0, made - 4)
            operands = draw.randrange(recent, made), draw.randrange(0, made)
            if kind == "pair":
                self.pairs.append(Pair(4, 4, draw.choice([1, 3])))
            self.steps.append((kind, *operands, len(self.pairs) - 1))

    def forward(self, x):
        values = [self.stem(x)]
        for kind, first, second, pair in self.steps:
            operations = {
                "pair": self.pairs[pair],
                "add": values[second].__add__,
                "relu": F.relu,
                "tanh": torch.tanh,
            }
            values.append(operations[kind](values[first]))
        return values[-1], values[-2], sum(values[::3])


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs(seed):
    assert_like_stock(frozen_convolutions(Random(seed)), images(2, 4, 4, grad=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25, 1000))
def test_more_random_graphs(seed):
    test_random_graphs(seed)
