"""Copies and replicas run on their own weights; threads, exchanged modules and tensors without memory do
not mislead a first call."""

import copy
import threading
import types
import warnings

import pytest
import torch
from habit_blocks import Reverse
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from watched import EXACT, Part, Penalty, Whole, net

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock
from fastbn.engine import fused_forward
from fastbn.graph.trace import tracer as tracing
from fastbn.planning.explain import explain

pytestmark = pytest.mark.usefixtures("seeded")


def test_copies_run_on_their_own_weights():
    model = fused(net(Whole(Part())))
    model(images(3))
    shallow = copy.copy(model)
    shallow._modules = dict(model._modules, first=net(Part(3)))
    nn.init.constant_(shallow.first.bn.weight, 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(shallow(images(3)), stock(shallow)(images(3)), atol=1e-9)
    assert fused_forward(shallow).model is shallow and fused_forward(model).model is model


def test_a_replica_runs_on_its_own_weights():
    model = fused(net(Whole(Part())))
    expected = model(images(3))
    replica = model._replicate_for_data_parallel()
    replica._is_replica = True
    replica._modules = dict(stock(model)._modules, first=net(Part(3)))
    nn.init.constant_(replica.first.bn.weight, 5.0)
    with pytest.warns(UserWarning, match="DataParallel"):
        assert not torch.allclose(replica(images(3)), expected)


def wrapped(model):
    """Wrap a forward as accelerate prepares a model: around the function, and bound again."""
    inner = model.forward.__func__

    def forward(self, *args, **kwargs):
        return inner(self, *args, **kwargs) * 2.0

    forward.__wrapped__ = inner
    model.forward = types.MethodType(forward, model)
    return model


def test_a_wrapper_that_binds_the_forward_anew():
    model = wrapped(fused(net(Whole(Part())).eval()))
    assert explain(model).fused and fused_forward(model) is not None
    twin = copy.deepcopy(model)
    nn.init.constant_(twin.first.bn.weight, 5.0)
    assert fused_forward(twin).model is twin
    x = images(3)
    assert torch.allclose(twin(x), 2.0 * stock(stock(twin))(x)) and not torch.allclose(twin(x), model(x))
    model.forward = types.MethodType(model.forward.__wrapped__, model)
    assert torch.allclose(model(x) * 2.0, wrapped(fused(stock(model)))(x)) and explain(model).fused


def test_a_first_call_beside_other_threads():
    model, other = fused(net(Whole(Part()))), net(Whole(Penalty()))
    errors, stop = [], threading.Event()

    def beside():
        try:
            while not stop.is_set():
                Reverse.apply(other(images(1)), 1.0).mean().backward()
        except BaseException as error:
            errors.append(error)

    def first():
        try:
            for _ in range(4):
                copy.deepcopy(model)(images(2))
        except BaseException as error:
            errors.append(error)

    busy = threading.Thread(target=beside)
    threads = [threading.Thread(target=first) for _ in range(4)]
    for thread in (busy, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    busy.join()
    assert not errors
    assert torch.autograd.Function.apply.__func__.__module__ == "torch.autograd.function"  # its own again


def test_exchanged_norms_are_traced_once_a_set(monkeypatch):
    traces = []
    monkeypatch.setattr(
        tracing.Tracer,
        "run",
        lambda self, call, own=tracing.Tracer.run: (traces.append(self), own(self, call))[1],
    )
    model = fused(net(Whole(Part())))
    theirs = stock(model)
    sets = [(each, copy.deepcopy(each.first.bn), copy.deepcopy(each.first.bn)) for each in (model, theirs)]
    for call in range(6):
        for each, *norms in sets:
            each.first.bn = norms[call % 2]
        assert_same(run(model, images(2, seed=call)), run(theirs, images(2, seed=call)), EXACT)
    assert len(traces) == 2


def test_fake_and_meta_tensors_run_stock():
    model = fused(net(Whole(Part())))
    real = model(images(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.empty(3, 3, 8, 8, dtype=torch.float64)).shape == real.shape
        meta = fused(net(Whole(Part()))).to("meta")
        assert meta(images(3).to("meta")).is_meta


def test_transforms_of_torch_func_run_stock():
    model = fused(net(Whole(Part())).eval())
    with pytest.warns(UserWarning, match=r"torch\.func"):
        found = torch.func.vmap(model)(torch.stack([images(2), images(2, seed=2)]))
    assert torch.allclose(found[1], stock(model)(images(2, seed=2)))
