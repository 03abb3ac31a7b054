"""Autograd functions, BatchNorm subclasses, attributes and arguments of people's own: fused is what was
written."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from habit_blocks import Reverse, Same
from torch import nn
from torch.optim.swa_utils import update_bn
from watched import EXACT, Part, Whole, both, net

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock
from fastbn.engine import fused_forward
from fastbn.planning.explain import explain

pytestmark = pytest.mark.usefixtures("seeded")

same, reverse = Same.apply, Reverse.apply  # as the documentation of torch.autograd.Function does it


@pytest.mark.parametrize(
    "call, regions",
    [
        (lambda x: Reverse.apply(x, 0.5), 2),
        (lambda x: Same.apply(x), 2),
        (lambda x: reverse(x, 0.5), 2),
        (same, 2),
    ],
    ids=["Reverse.apply", "Same.apply", "reverse", "same"],
)
def test_a_function_s_own_backward(call, regions):
    class Reversed(Part):
        def forward(self, x):
            return call(self.body(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, _ = both(net(Whole(Reversed())), images(3, grad=True))
    assert len(explain(ours).graph.regions) == regions  # the function between them


def test_a_number_that_changes_from_call_to_call():
    """A gradient reversal's weight, which grows with the epoch, costs no trace a call."""

    class Domain(Part):
        def forward(self, x, by):
            return Reverse.apply(self.body(x), by)

    model = net(Domain(3))
    ours, theirs = fused(model), stock(model)
    for by in torch.linspace(0.1, 1.0, 12).tolist():
        mine, other = run(lambda_of(ours, by), images(3)), run(lambda_of(theirs, by), images(3))
        assert_same(mine, other, EXACT)
    assert sum(map(len, fused_forward(ours)._reading.programs.values())) < 8


def lambda_of(model, by):
    class Bound(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x, by)

    return Bound()


class WrittenOut(nn.BatchNorm2d):
    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps
        )
        return F.leaky_relu(x, 0.2)


class Renamed(nn.BatchNorm2d):
    pass


class OneLiner(nn.Module):
    """A norm of one's own, no BatchNorm by its class."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
        return x - self.mean.view(1, -1, 1, 1)


@pytest.mark.parametrize("norm", [lambda n: WrittenOut(n, momentum=None), Renamed, OneLiner])
def test_norms_of_somebody_s_own(norm):
    model = net(Whole(Part(norm=norm)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = both(model, images(3))
        for each in (ours, theirs):
            update_bn([(images(3, seed=seed),) for seed in range(4)], each)
        assert_same(run(ours.eval(), images(3)), run(theirs.eval(), images(3)), EXACT)
    assert "first.conv" in [conv.name for region in explain(ours).graph.regions for conv in region.convs]


def test_explain_names_the_subclass():
    whys = dict(explain(fused(net(Whole(Part(norm=WrittenOut))))).graph.stock)
    assert "WrittenOut" in whys["part.conv"]


def test_attributes_that_decide():
    class Chosen(Part):
        def __init__(self):
            super().__init__()
            self.domain, self.scale, self.bns = (
                0,
                {"by": [1.0]},
                nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)]),
            )

        def forward(self, x):
            return F.relu(self.bns[self.domain](self.conv(x))) * self.scale["by"][0]

    model = net(Whole(Chosen()))
    ours, theirs = fused(model), stock(model)
    for domain, scale in ((0, 1.0), (1, 1.0), (0, 1.0), (1, 2.0), (0, 3.0), (1, 1.0)):
        for each in (ours, theirs):
            each.part.domain, each.part.scale["by"][0] = domain, scale
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
    assert not [why for _, why in explain(ours).graph.stock if why]


def test_an_attribute_that_changes_at_each_call_is_read_at_each():
    class Scheduled(Part):
        scale = 1.0

        def forward(self, x):
            return self.body(x) * self.scale

    model = net(Whole(Scheduled()))
    ours, theirs = fused(model), stock(model)
    for i in range(15):
        for each in (ours, theirs):
            each.part.scale = 1.0 + i
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
    assert ("part", "self.scale changes from call to call") in explain(ours).graph.stock


def test_draws_keep_their_order():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.drop = Part(3), Part(), Part(), nn.Dropout(0.5)

        def forward(self, x):
            x = self.a(x)
            late = self.drop(torch.tanh(self.b(x)))
            early = torch.rand(1, dtype=x.dtype) * torch.tanh(x)
            noise = torch.randn_like(x) if self.training else 0.0
            return self.c(x) + late + early + noise + F.dropout(x, 0.3, self.training)

    both(net(Noisy()), images(3, grad=True))


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((), {}),
        ((1,), {}),
        ((), {"domain": 1}),
        ((1, torch.ones(1)), {}),
        ((0,), {"more": [torch.ones(1), 2]}),
    ],
)
def test_arguments_of_all_kinds(args, kwargs):
    class Many(Part):
        def forward(self, x, *args, names=[], domain=0, **options):  # noqa: B006
            x = self.body(x) * (domain + 1) + len(names)
            for value in (*args, *options.get("more", ())):
                x = x + value
            return x

    model = net(Many(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(
            fused(model)(images(3), *args, **kwargs), stock(model)(images(3), *args, **kwargs), atol=1e-9
        )
    assert explain(fused(model)).graph.regions


def test_a_required_integer():
    class Domains(Part):
        def __init__(self):
            super().__init__(3)
            self.bns = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(3)])

        def forward(self, x, domain: int):
            return F.relu(self.bns[domain](self.conv(x)))

    model = net(Domains())
    ours, theirs = fused(model), stock(model)
    assert "control flow" in str(explain(ours)) or "Domains" in str(explain(ours))
    for domain in (0, 2, 1, 0):
        assert torch.allclose(ours(images(3), domain), theirs(images(3), domain), atol=1e-9)
    assert [len(region.convs) for region in explain(ours).graph.regions] == [1]
