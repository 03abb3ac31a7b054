"""Layers that are changed in place, subclasses that do more, and modes that a forward leaves behind."""

import copy

import pytest
import torch
from nets import frozen_convolutions
from outside_parts import EXACT, Part, Whole, net
from torch import nn

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock
from fastbn.engine import fuse

# ------ what a match reads of a module that is not traced


def replace_forward(module):
    module.forward = lambda x: x * 2.0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.part.conv, "padding", (0, 0)),
        lambda m: setattr(m.part.conv, "stride", (2, 2)),
        lambda m: setattr(m.part.conv, "padding_mode", "circular"),
        lambda m: setattr(m.part.act, "negative_slope", 0.7),
        lambda m: setattr(m.part.act, "inplace", True),
        lambda m: replace_forward(m.part.bn),
        lambda m: replace_forward(m.part.act),
        lambda m: replace_forward(m.part.conv),
        lambda m: replace_forward(m.part.same),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_a_layer_that_is_changed_in_place(change, before):
    class Layers(Part):
        def __init__(self):
            super().__init__()
            self.act, self.same = nn.LeakyReLU(0.1), nn.Identity()

        def forward(self, x):
            return self.act(self.same(self.bn(self.conv(x))))

    model = net(Layers())
    ours, theirs = fused(model), stock(model)
    for call in range(2 + before):
        if call == before:
            change(ours), change(theirs)
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)


class CountsCalls(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.steps += 1
        return super().forward(x)


class CountsChecks(nn.BatchNorm2d):
    checks = 0

    def _check_input_dim(self, x):
        self.checks += 1


class Gated(nn.BatchNorm2d):
    """A parameter that changes nothing as yet, and has a gradient."""

    def __init__(self, channels):
        super().__init__(channels)
        self.gate = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return super().forward(x) * self.gate


class Tempered(nn.BatchNorm2d):
    temperature = 1.0

    def __init__(self, channels):
        super().__init__(channels)
        self.by = 1.0

    def forward(self, x):
        return super().forward(x) * self.by


@pytest.mark.parametrize("kind", [CountsCalls, CountsChecks, Gated, Tempered])
def test_a_batchnorm_that_does_more(kind):
    model = Whole(Part())
    model.part.bn = kind(4)
    model = frozen_convolutions(model).double()
    ours, theirs = fused(model), stock(model)
    for call in range(3):
        for each in (ours, theirs):
            each.part.bn.by = 1.0 + call
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
    assert getattr(ours.part.bn, "checks", 0) == getattr(theirs.part.bn, "checks", 0)


# ------ modes and gradients that a forward leaves behind


def test_a_mode_that_a_forward_sets_and_sets_back():
    class Doubles(Part):
        def forward(self, x):
            before = torch.get_default_dtype()
            torch.set_default_dtype(torch.float64)
            made = torch.ones(4, 1, 1)
            torch.set_default_dtype(before)
            return self.body(x) * made

    model = net(Doubles())
    before = torch.get_default_dtype()
    assert_same(run(fused(model), images(3)), run(stock(model), images(3)), EXACT)
    assert torch.get_default_dtype() == before


def test_a_backward_inside_a_forward_counts_once():
    class Inner(Part):
        def forward(self, x):
            x = self.body(x)
            (0.1 * x.mean()).backward(retain_graph=True)
            return x

    model = net(Inner())
    assert_same(run(fused(model), images(3)), run(stock(model), images(3)), EXACT)


def test_random_numbers_that_are_put_back():
    class Forks(Part):
        def forward(self, x):
            with torch.random.fork_rng(devices=[]):
                noise = torch.rand(1, dtype=x.dtype)
            return self.body(x) * noise

    ours = fuse(copy.deepcopy(net(Forks())), "reference")
    theirs = stock(ours)
    with pytest.warns(UserWarning, match="draws other random numbers"):
        assert_same(run(ours, images(3), dropout_seed=3), run(theirs, images(3), dropout_seed=3), EXACT)
        torch.manual_seed(5)
        ours(images(3))
        drawn = torch.rand(1)
        torch.manual_seed(5)
        theirs(images(3))
        assert torch.equal(drawn, torch.rand(1))


def test_numbers_of_numpy_s_and_enum_s():
    import enum

    import numpy as np

    class Size(enum.IntEnum):
        FOUR = 4

    class Numbers(Part):
        def forward(self, x):
            x = self.body(x) * np.float64(2.0) + np.int64(3)
            return x.view(-1, Size.FOUR, x.shape[2], x.shape[3]), x, np.float64(3.0)

    ours, theirs = fused(net(Numbers())), stock(net(Numbers()))
    found, expected = ours(images(3)), theirs(images(3))
    assert torch.allclose(found[0], expected[0]) and found[2] == expected[2] == 3.0
    assert type(found[2]) is type(expected[2])


def test_a_decision_by_a_table_of_sizes():
    class Table(Part):
        def forward(self, x):
            return self.body(x) * {3: 2.0}.get(x.shape[0], 5.0)

    model = net(Table())
    assert_same(run(fused(model), images(3)), run(stock(model), images(3)), EXACT)
