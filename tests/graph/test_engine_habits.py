"""Whatever a forward's Python does, fused is what was written: random networks of habits, each run fused
and stock side by side."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from habits import Habits, arguments, change
from nets import frozen_convolutions

from bench.oracle.networks import images
from bench.oracle.stock import error
from fastbn.engine import fuse
from fastbn.graph.trace.outputs import leaves

CALLS = 3


def seeded(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def once(model, draw, seed, grad):
    """Return what a call and a backward leave: the result's class and contents, gradients, all that the model
    then holds, random numbers after it."""
    args, kwargs = arguments(draw, images(3, 7, 7, seed=seed, grad=draw.random() < 0.5))
    model.zero_grad()
    seeded(seed)
    with torch.set_grad_enabled(grad):
        result = model(*args, **kwargs)
    tensors = [leaf for leaf in leaves(result) if isinstance(leaf, torch.Tensor)]
    losses = [m.penalty for m in model.modules() if hasattr(m, "penalty")]
    live = [t for t in (*tensors, *losses) if t.requires_grad]
    draws = torch.Generator().manual_seed(seed)
    weights = [torch.randn(t.shape, generator=draws, dtype=torch.float64) for t in live]
    if live:
        torch.autograd.backward(live, weights)
    state = {f"grad of {n}": p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())
    state |= {f"output {i}": t for i, t in enumerate(tensors)} | {
        f"loss {i}": t for i, t in enumerate(losses)
    }
    state |= {"input's gradient": args[0].grad}
    calls = [
        (getattr(m, "calls", 0), [round(float(t), 8) for t in getattr(m, "history", ())], hasattr(m, "last"))
        for m in model.modules()
    ]
    names = [sorted(set(vars(m)) - {"forward"}) for m in model.modules()]
    return state, (
        type(result),
        [t.requires_grad for t in tensors],
        calls,
        names,
        random.random(),
        torch.rand(1).item(),
    )


def assert_like_stock(seed):
    model = frozen_convolutions(Habits(seed)).double().train(seed % 3 > 0)
    ours, theirs = fuse(copy.deepcopy(model), "reference"), model
    for call in range(CALLS):
        grad = (seed + call) % 5 > 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mine, said = once(ours, random.Random(f"{seed} {call}"), seed + call, grad)
        other, expected = once(theirs, random.Random(f"{seed} {call}"), seed + call, grad)
        for one, two in zip(said, expected, strict=True):
            assert one == two
        assert mine.keys() == other.keys()
        for name, value in other.items():
            assert (mine[name] is None) == (value is None), name
            assert value is None or error(mine[name], value) <= 1e-9, (
                f"{name} in call {call}: {error(mine[name], value):.1e}"
            )
        for net in (ours, theirs):
            torch.manual_seed(seed)
            change(net, random.Random(f"{seed} {call} change"))


@pytest.mark.parametrize("start", range(0, 300, 25))
def test_like_stock(start):
    for seed in range(start, start + 25):
        assert_like_stock(seed)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(300, 3300, 100))
def test_more_like_stock(start):
    for seed in range(start, start + 100):
        assert_like_stock(seed)
