"""Networks that are not ours: fused equals stock, and explain() says exactly what runs where."""

import random

import pytest
import torch
import torch.nn.functional as F
from foreign_graphs import (
    NETS,
    Inception,
    Misfits,
    Optional,
    PlainParameters,
    TwoInTwoOut,
)
from foreign_nets import (
    Net,
    Pair,
)
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import images
from bench.oracle.stock import assert_like_stock, assert_same, error, fused, run, stock, tolerance
from fastbn.engine import fuse
from fastbn.models.export import to_torch
from fastbn.planning.explain import explain

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
