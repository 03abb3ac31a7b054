"""What a forward reads outside its module is expected at each call, and what it changes there is left as it
was."""

import copy
import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock, tolerance
from fastbn.engine import fuse
from fastbn.graph.trace import tracer as tracing
from fastbn.planning.explain import explain

EXACT = tolerance(torch.float64)
FACTOR, ACTIVATION, LOG = 1.0, F.relu, []
SETTINGS = types.SimpleNamespace(factor=1.0, seen={"calls": 0})


class Part(nn.Module):
    """convolution -> BatchNorm -> ReLU; a forward is the test's own."""

    def __init__(self, inside=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inside, 4, 3, padding=1), nn.BatchNorm2d(4)

    def body(self, x):
        return F.relu(self.bn(self.conv(x)))

    def forward(self, x):
        return self.body(x)


class Whole(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.first, self.part = Part(3), part

    def forward(self, x):
        return self.part(self.first(x))


def scaled(x):
    return x * FACTOR


class Global(Part):
    def forward(self, x):
        return self.body(x) * FACTOR


class ByAFunction(Part):
    def forward(self, x):
        return scaled(self.body(x))


class GlobalFunction(Part):
    def forward(self, x):
        return ACTIVATION(self.bn(self.conv(x)))


class GlobalObject(Part):
    def forward(self, x):
        return self.body(x) * SETTINGS.factor


class OfItsClass(Part):
    factor = 1.0

    def forward(self, x):
        return self.body(x) * type(self).factor * OfItsClass.factor


class Patched(Part):
    def scale(self, x):
        return x

    def forward(self, x):
        return self.scale(self.body(x))


def closure():
    factor = 1.0

    class Closure(Part):
        def forward(self, x):
            return self.body(x) * factor

    def put(value):
        nonlocal factor
        factor = value

    return Closure(), put


def put_global(name):
    return lambda value: globals().__setitem__(name, value)


CHANGES = {
    "a global": lambda: (Global(), put_global("FACTOR")),
    "a global that a function reads": lambda: (ByAFunction(), put_global("FACTOR")),
    "a function": lambda: (
        GlobalFunction(),
        lambda v: put_global("ACTIVATION")(torch.tanh if v > 1 else F.relu),
    ),
    "an object's attribute": lambda: (GlobalObject(), lambda v: setattr(SETTINGS, "factor", v)),
    "a class's attribute": lambda: (OfItsClass(), lambda v: setattr(OfItsClass, "factor", v)),
    "a method": lambda: (Patched(), lambda v: setattr(Patched, "scale", lambda self, x: x * v)),
    "a closure": closure,
}


def net(part):
    return frozen_convolutions(Whole(part)).double()


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    put_global("FACTOR")(1.0), put_global("ACTIVATION")(F.relu)
    SETTINGS.factor, OfItsClass.factor = 1.0, 1.0
    SETTINGS.seen["calls"] = 0
    LOG.clear()


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_outside_is_read_again(what):
    part, put = CHANGES[what]()
    model = net(part)
    ours, theirs = fused(model), stock(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (1.0, 2.0, 1.0, 3.0):
            put(value)
            assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
    assert len(explain(ours).graph.regions) >= 1


def test_what_changes_at_each_call_runs_as_it_was_written(monkeypatch):
    traces = []
    own = tracing.Tracer.run
    monkeypatch.setattr(tracing.Tracer, "run", lambda self, call: (traces.append(self), own(self, call))[1])
    ours, theirs = fused(net(Global())), stock(net(Global()))
    for value in range(20):
        put_global("FACTOR")(1.0 + value)
        assert_same(run(ours, images(2)), run(theirs, images(2)), EXACT)
    assert ("part", "the global FACTOR changes from call to call") in explain(ours).graph.stock
    assert len(traces) < 12


class Counts(Part):
    def forward(self, x):
        SETTINGS.seen["calls"] += 1
        return self.body(x) * SETTINGS.seen["calls"]


class Appends(Part):
    def forward(self, x):
        x = self.body(x)
        LOG.append(float(len(LOG)))
        return x + len(LOG)


class CountsInItsClass(Part):
    calls = 0

    def forward(self, x):
        CountsInItsClass.calls += 1
        return self.body(x) * CountsInItsClass.calls


class Default(Part):
    def forward(self, x, seen=[]):  # noqa: B006
        seen.append(1)
        return self.body(x) * len(seen)


@pytest.mark.parametrize("kind", [Counts, Appends, CountsInItsClass, Default])
def test_what_a_forward_changes_outside_is_changed_once_a_call(kind):
    """explain and the comparison run the forward too, and leave no mark."""

    def thrice(model):
        SETTINGS.seen["calls"], CountsInItsClass.calls = 0, 0
        Default.forward.__defaults__[0].clear()
        LOG.clear()
        explain(model)
        return [run(model, images(3)) for _ in range(3)]

    model = net(kind())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine, other = thrice(fused(model)), thrice(stock(model))
    for one, two in zip(mine, other, strict=True):
        assert_same(one, two, EXACT)
    whys = dict(explain(fused(model)).graph.stock)
    assert "changes" in whys["part"]


class ThroughItsDictionary(Part):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.__dict__["calls"] += 1
        return self.body(x) * self.calls


class PastItsSetter(ThroughItsDictionary):
    def forward(self, x):
        object.__setattr__(self, "calls", self.calls + 1)
        return self.body(x) * self.calls


@pytest.mark.parametrize("kind", [ThroughItsDictionary, PastItsSetter])
def test_what_a_forward_writes_past_setattr(kind):
    model = net(kind())
    ours, theirs = fused(model), stock(model)
    for call in range(3):
        assert_same(run(ours, images(3)), run(theirs, images(3)), EXACT)
        assert ours.part.calls == theirs.part.calls == call + 1
    assert explain(ours).graph.regions


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
