"""The graph as data: shapes, uses, liveness; what matches and how it is gathered and ordered; what
explain() prints."""

import pytest
import torch
import torch.nn.functional as F
from graph_nets import Net, block, described, traced
from regions import conv
from torch import nn

from fastbn.engine.walk import live_values
from fastbn.graph.activations import RELU
from fastbn.graph.match import fixed_padding
from fastbn.graph.partition import order, partition
from fastbn.graph.regions import Join, Region, Unfit


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
