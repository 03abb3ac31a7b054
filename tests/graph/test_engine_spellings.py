"""Every spelling of an addition and a ReLU matches; explain says what a network runs."""

import itertools
import operator

import pytest
import torch
import torch.nn.functional as F
from graph_nets import Net, described, traced
from torch import nn

from fastbn.models.resnet import FastBNOnlyResNet
from fastbn.planning.explain import explain

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
