"""The graph as data: shapes, uses, liveness; what matches and how it is gathered and ordered; what
explain() prints."""

import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import fx, nn

from fastbn.engine.walk import live_values
from fastbn.graph.activations import IDENTITY, NAMES, RELU
from fastbn.graph.match import fixed_padding, match
from fastbn.graph.partition import order, partition
from fastbn.graph.regions import Conv, Join, Region, Unfit
from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.planning.explain import explain


def conv(name, source, inside, outside, kernel=3, stride=1, padding=1, dilation=1, slot=0):
    return Conv(
        name,
        f"{name}_bn",
        source,
        inside,
        outside,
        (kernel,) * 2,
        (stride,) * 2,
        (padding,) * 2,
        (dilation,) * 2,
        1,
        slot,
    )


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


def test_a_region_counts():
    region = block()
    assert [c.name for c in region.convs] == ["a", "b", "p", "c", "d"]
    assert region.channels == 24
    assert [c.span for c in region.convs] == [
        slice(0, 4),
        slice(4, 10),
        slice(10, 16),
        slice(16, 22),
        slice(22, 24),
    ]
    # value 3 has an addition, no ReLU
    assert [join.needs_mask for join in region.joins] == [False, True, False, False]
    assert [join.sources for join in region.joins] == [(0,), (1, 0), (2, 2), (2,)]
    assert region.uses() == {0: 2, 1: 1, 2: 4, 3: 0, 4: 1}


def test_shapes():
    assert block().shapes(((5, 3, 9, 7),)) == {
        0: (5, 3, 9, 7),
        1: (5, 4, 5, 4),
        2: (5, 6, 5, 4),
        3: (5, 6, 5, 4),
        4: (5, 2, 3, 2),
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": 3, "padding": 0},
        {"kernel": 5, "dilation": 2, "padding": 3},
        {"kernel": 2},
    ],
)
@pytest.mark.parametrize("size", [(9, 7), (16, 32), (11, 11)])
def test_a_convolutions_shape_is_torchs(options, size):
    ours = conv("a", 0, 3, 4, **options)
    theirs = nn.Conv2d(3, 4, ours.kernel, ours.stride, ours.padding, ours.dilation)
    assert ours.shape((2, 3, *size)) == tuple(theirs(torch.zeros(2, 3, *size)).shape)


# channels; no image; no row (padding 0)
@pytest.mark.parametrize("shape", [(2, 4, 8, 8), (0, 3, 8, 8), (2, 3, 0, 8)])
def test_shapes_that_are_none(shape):
    with pytest.raises(Unfit, match="a cannot read an input of shape"):
        conv("a", 0, 3, 4, padding=0).shape(shape)


def test_a_broadcast_is_unfit():
    region = Region(2, (Join(2, (conv("a", 0, 3, 4),), 1, RELU),), (2,))
    assert region.shapes(((2, 3, 8, 8), (2, 4, 8, 8)))[2] == (2, 4, 8, 8)
    with pytest.raises(Unfit, match=r"after a_bn broadcasts \(2, 4, 1, 1\) and \(2, 4, 8, 8\)"):
        region.shapes(((2, 3, 8, 8), (2, 4, 1, 1)))


@pytest.mark.parametrize(
    "inputs, trains, live",
    [
        ([True], [False] * 5, {0, 1, 2, 4}),  # 3 is read by nobody
        ([False], [True] * 5, {1, 2, 4}),
        # the projection's, so the join is live and a is not
        ([False], [False, False, True, False, False], {2, 4}),
        ([False], [False, False, False, False, True], {4}),
        ([False], [False, False, False, True, False], set()),
        ([False], [False] * 5, set()),
    ],
)
def test_live_values(inputs, trains, live):
    assert live_values(block(), inputs, trains) == live


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


def test_match():
    _, units, refused = traced()
    assert refused == {}
    assert described(units) == [
        (["a"], None, True, "relu"),
        (["b", "p"], None, True, "relu_1"),
        (["c"], None, False, "c_bn"),
        (["d"], None, True, "relu_2"),
        (["e"], "relu_1", True, "relu_3"),
    ]
    assert [len(unit.nodes) for unit in units] == [3, 6, 2, 3, 4]


def test_match_without_what_the_engine_lacks():
    _, units, refused = traced(refuse=("p", "d"))
    assert refused == {"p": "not this one", "d": "not this one"}
    assert described(units) == [
        (["a"], None, True, "relu"),
        (["b"], "p_bn", True, "relu_1"),  # a stock projection is a residual like any other
        (["c"], None, False, "c_bn"),
        (["e"], "relu_1", True, "relu_3"),
    ]


def names(groups):
    return [[str(c.target) for unit in group for c, _ in unit.convs] for group in groups]


def test_partition_keeps_the_stock_operation_outside():
    graph, units, _ = traced()
    assert names(partition(graph, units)) == [["a", "b", "p"], ["c", "d", "e"]]


def test_partition_merges_branches_that_meet():
    class Two(Net):
        def forward(self, x, y):
            left, right = F.relu(self.a_bn(self.a(x))), F.relu(self.b_bn(self.b(y)))
            return F.relu(self.c_bn(self.c(left)) + right), torch.sigmoid(left)

    graph, units, _ = traced(Two())
    assert names(partition(graph, units)) == [["a", "b", "c"]]


def test_order_runs_everything_once_and_after_what_it_reads():
    graph, units, _ = traced()
    groups = partition(graph, units)
    plan = order(graph, groups)
    assert [item if isinstance(item, int) else item.name for item in plan] == ["x", 0, "sigmoid", 1, "output"]


def test_order_puts_a_region_at_its_last_unit():
    """The sigmoid was traced between two units that run as one: it comes after both, its reader after it."""

    class Late(Net):
        def forward(self, x):
            a = F.relu(self.a_bn(self.a(x)))
            early = torch.sigmoid(a)
            return F.relu(self.b_bn(self.b(a))) + early

    graph, units, _ = traced(Late())
    groups = partition(graph, units)
    assert names(groups) == [["a", "b"]]
    plan = order(graph, groups)
    assert [item if isinstance(item, int) else item.name for item in plan] == [
        "x",
        0,
        "sigmoid",
        "add",
        "output",
    ]


@pytest.mark.parametrize(
    "padding, kernel, dilation, expected",
    [
        ("valid", 3, 1, (0, 0)),
        ("same", 3, 1, (1, 1)),
        ("same", 5, 2, (4, 4)),
        ("same", 2, 1, None),
        ("same", 2, 2, (1, 1)),
        (2, 3, 1, (2, 2)),
    ],
)
def test_fixed_padding(padding, kernel, dilation, expected):
    assert fixed_padding(nn.Conv2d(3, 4, kernel, padding=padding, dilation=dilation)) == expected


ADDITIONS = [operator.add, operator.iadd, torch.add, lambda x, y: x.add(y), lambda x, y: x.add_(y)]
RELUS = [
    F.relu,
    torch.relu,
    F.relu_,
    torch.relu_,
    lambda x: x.relu(),
    lambda x: x.relu_(),
    nn.ReLU(),
    nn.ReLU(inplace=True),
]


@pytest.mark.parametrize("addition", ADDITIONS)
@pytest.mark.parametrize("relu", RELUS)
def test_every_spelling_matches(addition, relu):
    class Spelled(Net):
        def forward(self, x):
            return self.last(addition(self.a_bn(self.a(x)), F.avg_pool2d(x, 1)[:, :1]))

    net = Spelled()
    net.last = relu
    _, units, _ = traced(net)
    ((convs, residual, has_relu, _),) = described(units)
    assert convs == ["a"] and residual == "getitem" and has_relu


EXPLAINED = """\
FastBNOnlyResNet: 15 of 15 convolutions run fused (100% of the multiplications); engine reference (asked for)
  fused 0: conv1 … layer3.1.bn2: 15 convolutions with their BatchNorms, 6 additions, 13 relu; 1,120 γ and β
  15 convolutions by torch's conv2d
  stock, between the regions: avgpool, flatten, fc"""


def test_explain():
    """Depth 14: a stem, six blocks of two convolutions, two projections."""
    assert str(explain(FastBNOnlyResNet(14, engine="reference"))) == EXPLAINED


def test_explain_reads_a_model_that_is_not_fused_as_it_would_be():
    found, fused = (explain(FastBNOnlyResNet(14, engine=engine)) for engine in ("stock", "auto"))
    assert fused.fused and not found.fused and found.graph.stock == fused.graph.stock
    assert str(found).replace("; not fused yet: this is what fuse(model) would do", "") == str(fused)


@pytest.mark.parametrize(("depth", "family"), [(14, "cifar"), (50, "imagenet")])
def test_channels_follow_each_other_in_the_order_of_the_convolutions(depth, family):
    """A flat gradient is cut by that order."""
    for region in explain(FastBNOnlyResNet(depth, width=4, family=family)).graph.regions:
        ends = list(itertools.accumulate(conv.channels for conv in region.convs))
        assert [conv.slot for conv in region.convs] == [0, *ends[:-1]] and ends[-1] == region.channels


def test_explain_tells_the_regions_of_an_imagenet_net():
    """The max-pooling parts the stem from the rest."""
    graph = explain(FastBNOnlyResNet(50, width=4, family="imagenet")).graph
    assert [len(region.convs) for region in graph.regions] == [1, 52]
    assert [what for what, _ in graph.stock] == ["maxpool", "avgpool", "flatten", "fc"]
