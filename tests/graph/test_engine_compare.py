"""The comparison at the first call: what no trace can see is found, at less than a forward's cost."""

import copy
import gc
import sys
import threading
import warnings

import pytest
import torch
from torch import nn
from watched import Part, Whole, both, net

from bench.oracle.networks import images
from bench.oracle.stock import fused, stock
from fastbn.engine import fuse
from fastbn.engine.program import compare
from fastbn.planning import step_memory
from fastbn.planning.explain import explain

pytestmark = pytest.mark.usefixtures("seeded")


class Asks(Part):
    """What a proxy answers, no tensor would."""

    def forward(self, x):
        return self.body(x) * (2.0 if isinstance(x, torch.Tensor) else 3.0)


def test_what_nobody_sees_is_compared():
    model = net(Asks(3))
    with pytest.warns(UserWarning, match="traced by torch.fx it is not the same: its outputs") as caught:
        ours, _ = both(model, images(3))
    assert len(caught) == 1 and "not the same" in str(explain(ours))
    unchecked = fuse(copy.deepcopy(model), "reference", check=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(unchecked(images(3)), 1.5 * stock(model)(images(3)))


def test_the_comparison_takes_a_part_once_a_mode():
    seen = threading.local()
    seen.batches = []

    class Counted(Part):
        def forward(self, x):
            seen.batches.append(x.shape[0] if isinstance(x, torch.Tensor) else "traced")
            return self.body(x)

    ours = fused(net(Counted(3)))
    for training in (True, True, False, False):
        ours.train(training)
        ours(images(16))
    assert seen.batches == ["traced", 2, 2]  # one trace serves both modes


def test_the_comparison_lets_go_of_what_it_made(monkeypatch):
    """A ReLU saves its own output: handed to autograd as it is, it would keep itself alive, and its graph."""
    left, x = [], images(4, 64, 64)

    def counted(*arguments):
        with step_memory.Counted() as memory:
            memory.note(x)
            found = compare.difference(*arguments)
            gc.collect()
            left.append(memory.live - x.nbytes)
        return found

    monkeypatch.setattr(sys.modules["fastbn.engine.fuse"], "difference", counted)
    fused(net(Part(3)))(x)
    assert left[0] < 2 * 4 * 32 * 32 * 8  # bytes of one activation, of two images' corners


class Flat(Part):
    """A head of a fixed size: no part of an image will do."""

    def __init__(self):
        super().__init__(3)
        self.head = nn.Linear(4 * 8 * 8, 3)

    def forward(self, x):
        return self.head(self.body(x).flatten(1))


class Projected(Flat):
    """A BatchNorm that refuses one image."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.last(super().forward(x))


@pytest.mark.parametrize("kind", [lambda: Part(3), lambda: Whole(Part()), Flat, Projected])
@pytest.mark.parametrize("batch", [3, 8, 16])
def test_the_comparison_costs_less_than_a_forward(kind, batch, monkeypatch):
    """The cost is the pixels that the first convolution reads, in all trials together."""
    read = []
    own = nn.Conv2d.forward
    model = fused(net(kind()))
    monkeypatch.setattr(compare, "_trial", counting(compare._trial, read))
    model(images(batch))
    monkeypatch.undo()
    assert nn.Conv2d.forward is own and read
    if kind is not Projected or batch > 3:  # where three images must all be seen
        assert sum(read) < images(batch).numel()


def counting(trial, read):
    def counted(model, run, tensors):
        read.append(tensors[0].numel())
        return trial(model, run, tensors)

    return counted
