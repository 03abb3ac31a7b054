"""What a forward reads outside its module is expected at each call, and what it changes there is left as it
was."""

import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from outside_parts import EXACT, Part, net

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock
from fastbn.graph.trace import tracer as tracing
from fastbn.planning.explain import explain

FACTOR, ACTIVATION, LOG = 1.0, F.relu, []
SETTINGS = types.SimpleNamespace(factor=1.0, seen={"calls": 0})


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
