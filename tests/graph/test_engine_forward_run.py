"""The comparison at the first call: a forward that is followed step by step need not be run by its trace; one
that does anything else is found out."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from nets import frozen_convolutions
from torch import nn

from bench.oracle.networks import images
from bench.oracle.stock import fused, stock
from fastbn.engine.program import compare


class Part(nn.Module):
    """convolution -> BatchNorm -> ReLU, and what a test adds; `real` where no trace is taken."""

    def __init__(self, more=lambda own, x, real: x):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.register_buffer("held", torch.ones(4, dtype=torch.float64))
        self.scale = nn.Parameter(torch.ones(4, 1, 1, dtype=torch.float64))
        self.more = more

    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        return self.more(self, y, isinstance(x, torch.Tensor))


def flat(own, x, real):
    return torch.flatten(F.adaptive_avg_pool2d(x, 1), 1).view(x.size(0), -1)


def arithmetic(own, x, real):
    x = x * own.scale + x / 2 - x.mean()
    x += own.other(x)
    return torch.cat([x, -x], 1)[:, : x.shape[1] * 2 - 1].square()


def random(own, x, real):
    return own.drop(F.dropout2d(x, 0.3, own.training)) + torch.rand(1, dtype=x.dtype)


FOLLOWED = {"nothing": lambda own, x, real: x, "flat": flat, "arithmetic": arithmetic, "random": random}


def counted(monkeypatch):
    trials, own = [], compare._trial

    def trial(model, *arguments):
        trials.append(weakref.ref(model))
        return own(model, *arguments)

    monkeypatch.setattr(compare, "_trial", trial)
    return trials


@pytest.mark.parametrize("kind", FOLLOWED)
@pytest.mark.parametrize("training", [True, False])
def test_what_follows_its_trace_is_run_once(kind, training, monkeypatch):
    """And neither the model nor the random numbers tell of it; its copy goes at once."""
    trials = counted(monkeypatch)
    model = fused(frozen_convolutions(Part(FOLLOWED[kind])).double().train(training))
    twin = stock(copy.deepcopy(model))
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.manual_seed(3)
            found = model(images(3))
        assert len(trials) == 1 and trials[0]() is None
    finally:
        gc.enable()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.allclose(found, twin(images(3)), rtol=1e-9) and torch.equal(drawn, torch.rand(1))
    assert "forward" not in vars(model.other)


def seeds(own, x, real):
    if real:
        torch.manual_seed(1)
    return own.drop(x)


def forks(own, x, real):
    """The trace draws for good."""
    with torch.random.fork_rng(devices=[]):
        return x + torch.rand(1, dtype=x.dtype)


def another_buffer(own, x, real):
    if real:
        own._buffers["held"] = own.held + 1
    return x


def written_buffer(own, x, real):
    if real:
        own.held.data.mul_(2.0)
    return x


def no_grad(own, x, real):
    with torch.set_grad_enabled(not real):
        return x * 2.0


DIFFERENT = {
    "an operation in place": (lambda own, x, real: x.mul_(2.0) if real else x, "its outputs"),
    "a function more": (lambda own, x, real: x.sin() if real else x, "its outputs"),
    "a function less": (lambda own, x, real: x if real else x.sin(), "its outputs"),
    "another function": (lambda own, x, real: x.sin() if real else x.cos(), "its outputs"),
    "another number": (lambda own, x, real: x * (2.0 if real else 3.0), "its outputs"),
    "another keyword": (lambda own, x, real: x.sum(1, keepdim=real), "its outputs"),
    "another tensor": (lambda own, x, real: torch.cat([x, x * 2.0 if real else x], 1), "its outputs"),
    "another module": (lambda own, x, real: own.other(x) if real else own.bn(x), "its outputs"),
    "another return": (lambda own, x, real: (x, x) if real else (x, x, x), "another number"),
    "another seed": (seeds, "(draws other random numbers|its outputs)"),
    "numbers put back": (forks, "draws other random numbers"),
    "another buffer": (another_buffer, "leaves another held"),
    "a buffer written to": (written_buffer, "leaves another held"),
    "another mode": (no_grad, "."),
    "a draw": (lambda own, x, real: (real and torch.rand(1), x)[1], "draws other random numbers"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_what_does_anything_else_runs_stock(kind):
    more, said = DIFFERENT[kind]
    model = frozen_convolutions(Part(more)).double()
    ours, theirs = fused(model), stock(model)
    with pytest.warns(UserWarning, match=f"stock in this call: .*{said}"):
        torch.manual_seed(3)
        found = ours(images(3))
    torch.manual_seed(3)
    expected = theirs(images(3))
    for mine, other in zip(compare.leaves(found), compare.leaves(expected), strict=True):
        assert torch.equal(mine, other) and mine.requires_grad == other.requires_grad
    assert torch.equal(ours.held, theirs.held)
