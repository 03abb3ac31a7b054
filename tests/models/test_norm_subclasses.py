"""Subclasses of BatchNorm: one that adds an activation is fused, any other runs as it is."""

import pytest
import torch.nn.functional as F
from family_nets import NormAct, family
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import images, norms
from bench.oracle.stock import assert_like_stock
from fastbn.planning.explain import explain


def test_a_norm_with_an_activation_counts_its_batches():
    """Its cumulative average is that of three batches, not of one trace."""
    model = family("shuffled")
    for norm in norms(model):
        norm.momentum = None
    ours = assert_like_stock(model, images(3, 9, 9), calls=3)
    assert {int(norm.num_batches_tracked) for norm in norms(ours)} == {3}


class Wrong(nn.BatchNorm2d):
    """A module that is no batch norm, in one of the possible ways."""

    def __init__(self, channels, way):
        super().__init__(channels)
        self.way = way

    def forward(self, x):
        if self.way == "uncounted":
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
            )
        if self.way == "always frozen":
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
            )
        if self.way == "scaled in training":
            return super().forward(x) * (2 if self.training else 1)
        if self.way == "cut from the graph":
            return super().forward(x).detach() + 0 * x
        if self.way == "other momentum":
            return super().forward(x) if self.momentum is not None else x
        return super().forward(x.flatten(2).unsqueeze(-1))


WAYS = [
    "uncounted",
    "always frozen",
    "scaled in training",
    "cut from the graph",
    "other momentum",
    "another shape",
]


class Two(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.a_bn, self.b, self.b_bn = nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.b_bn(self.b(self.a_bn(self.a(x))))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", [*WAYS, "dropout", "two activations", "an unknown one"])
def test_a_norm_that_does_something_else_runs_as_it_is(norm, training):
    unknown = {
        "dropout": lambda: NormAct(4, nn.ReLU(), drop=0.5),
        "two activations": lambda: NormAct(4, nn.Sequential(nn.ReLU(), nn.SiLU())),
        "an unknown one": lambda: NormAct(4, nn.Softplus()),
    }
    model = frozen_convolutions(Two(unknown.get(norm, lambda: Wrong(4, norm))())).train(training)
    ours = assert_like_stock(model, images(2, 6, 5, grad=True), calls=2)
    graph = explain(ours).graph
    assert [conv.name for region in graph.regions for conv in region.convs] == ["b"]
    assert any(what == "a" and "is not a batch norm and an activation" in why for what, why in graph.stock)


def test_a_plain_subclass_is_a_batch_norm():
    class Named(nn.BatchNorm2d):
        pass

    ours = assert_like_stock(frozen_convolutions(Two(Named(4))), images(2, 6, 5), calls=2)
    assert explain(ours).convolutions == (2, 2)
