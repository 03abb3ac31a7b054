"""Blocks of the families that people train, each in its own words: fused as a whole, and like stock PyTorch
in float64, in training, in evaluation and mixed; by the native engine in float32 where no function bends."""

import pytest
import torch
import torch.nn.functional as F
from family_nets import FAMILIES, Inverted, Stem, family
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import flip_free, images, norms
from bench.oracle.stock import assert_like_stock, assert_same, error, flat_gradient, fused, run, stock
from fastbn.engine.native import build
from fastbn.planning.explain import explain

native = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


def mixed(model):
    for norm in norms(model)[::2]:
        norm.eval()
    for i, norm in enumerate(norms(model)):
        norm.momentum = (None, 0.3)[i % 2]
    return model


@pytest.mark.parametrize("mode", ["train", "eval", "mixed"])
@pytest.mark.parametrize("name", FAMILIES)
def test_like_stock(name, mode):
    model = mixed(family(name)) if mode == "mixed" else family(name).train(mode == "train")
    ours = assert_like_stock(model, images(3, 13, 17, grad=mode == "train"), calls=2)
    found = explain(ours)
    assert (*found.convolutions, len(found.graph.regions)) == (
        FAMILIES[name][1],
        FAMILIES[name][2],
        FAMILIES[name][3],
    )


@native
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", FAMILIES)
def test_native_in_float32(name, mode):
    model = flip_free(family(name)).train(mode == "train")
    x = images(3, 21, 19, dtype=torch.float32, grad=True)
    expected = run(stock(model).double(), x.detach().double().requires_grad_())
    found = run(fused(model, "native"), x)
    assert error(flat_gradient(found), flat_gradient(expected)) < 1e-4
    assert all(
        error(a, b) < 1e-4
        for a, b in zip(found.outputs + found.inputs, expected.outputs + expected.inputs, strict=True)
    )
    assert all(error(found.buffers[key], expected.buffers[key]) < 1e-5 for key in expected.buffers)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.a_bn, self.b, self.b_bn = (
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
        )
        self.drop, self.same = nn.Dropout2d(0.5), nn.Identity()

    def forward(self, x):
        return self.b_bn(
            self.b(F.dropout(F.relu(self.drop(self.same(self.a_bn(self.a(x))))), 0.3, self.training))
        )


def test_a_dropout_is_looked_through_while_it_drops_nothing():
    """Its own mode and its p at the call decide, the model's mode unchanged."""
    model = frozen_convolutions(Dropped())
    ours, theirs = fused(model.double()), stock(model)

    def regions():
        assert_same(run(ours, images(2)), run(theirs, images(2)), 1e-9)
        return len(explain(ours).graph.regions)

    assert regions() == 2
    for each in (ours, theirs):
        each.eval()
    assert regions() == 1
    for each in (ours, theirs):
        each.drop.train()
    assert regions() == 2
    for each in (ours, theirs):
        each.drop.p = 0.0
    assert regions() == 1


def test_the_stems_input_gradient_is_not_computed(monkeypatch):
    """That of a grouped stem is not computed either."""
    calls, convolve = [], torch.nn.functional.conv_transpose2d
    monkeypatch.setattr(
        torch.nn.functional, "conv_transpose2d", lambda *args: (calls.append(1), convolve(*args))[1]
    )
    net = frozen_convolutions(Stem(9, nn.SiLU(), Inverted(9, 9, nn.SiLU())))
    for grad, count in ((False, 3), (True, 4)):
        calls.clear()
        run(fused(net), images(2, dtype=torch.float32, grad=grad))
        assert len(calls) == count


def test_explain_is_short():
    text = str(
        explain(
            frozen_convolutions(nn.Sequential(*(Inverted(8, 8, nn.SiLU(), gate=True) for _ in range(20)))),
            (8, 14, 14),
        )
    )
    first, *rest = text.splitlines()
    assert "60 of 100 convolutions run fused (" in first and "% of the multiplications)" in first
    assert len(rest) < 10 and any("and 37 more" in line for line in rest)
    long = explain(
        frozen_convolutions(nn.Sequential(*(Inverted(8, 8, nn.SiLU(), gate=True) for _ in range(20)))),
        verbose=True,
    )
    assert len(str(long).splitlines()) > 100
