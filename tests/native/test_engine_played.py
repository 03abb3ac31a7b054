"""Regions played by the CPU's library: the walk's own bits, and the walk where a program does not serve."""

from __future__ import annotations

import pytest
import torch
from played import NETS, assert_same_bits, pair, programs, step
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.oracle.networks import images
from bench.oracle.stock import upstream
from fastbn.engine import walk
from fastbn.engine.context import recomputing
from fastbn.engine.native import build
from fastbn.engine.recomputation import Recompute

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


@pytest.fixture
def no_walk(monkeypatch):
    """Refuses a walk that computes, once a first call has written the programs down."""

    def from_now_on():
        def refuse(*arguments):
            raise AssertionError("walked")

        monkeypatch.setattr(walk, "forward", refuse)
        monkeypatch.setattr(walk, "backward", refuse)

    return from_now_on


@pytest.mark.parametrize("policy", [None, Recompute(1)], ids=str)
@pytest.mark.parametrize("name, grad", [(name, True) for name in NETS] + [("basic", False)])
def test_the_bits_of_the_walk(name, grad, policy):
    ours, theirs = pair(NETS[name]())
    for seed, batch in enumerate((3, 2, 3)):  # the ragged batch has a program of its own, in the same memory
        with recomputing(policy):
            found, expected = (
                step(m, images(batch, 17, 15, dtype=torch.float32, seed=seed, grad=grad))
                for m in (ours, theirs)
            )
        assert_same_bits(found, expected)


@pytest.mark.parametrize("policy", [None, Recompute(1)], ids=str)
def test_bfloat16(policy):
    """Stored as autocast says; the input, float32, is cast before the region."""
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = pair(NETS["basic"]())
        for seed in range(2):
            with recomputing(policy):
                found, expected = (
                    step(m, images(3, 17, 15, dtype=torch.float32, seed=seed, grad=True))
                    for m in (ours, theirs)
                )
            assert_same_bits(found, expected)
    assert all(programs(ours)) and found[0].dtype == torch.bfloat16


@pytest.mark.parametrize("threads", [1, 2])
def test_every_later_step_is_played(threads, no_walk):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, same = pair(NETS["basic"]())
        x = images(3, 9, 8, dtype=torch.float32)
        expected = [step(same, x) for _ in range(3)]
        found = [step(model, x)]
        no_walk()
        found += [step(model, x) for _ in range(2)]
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)
    finally:
        torch.set_num_threads(before)


def evaluation(model):
    model.eval()


def frozen_statistics(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def cumulative(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None


def untracked(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = module.num_batches_tracked = None


def uncounted(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.num_batches_tracked = None


@pytest.mark.parametrize(
    "change", [evaluation, frozen_statistics, cumulative, untracked, uncounted], ids=lambda f: f.__name__
)
def test_states_of_batchnorm(change):
    model = NETS["basic"]()
    change(model)
    ours, theirs = pair(model)
    for seed in range(3):
        x = images(3, 17, 15, dtype=torch.float32, seed=seed)
        assert_same_bits(step(ours, x), step(theirs, x))
        with torch.no_grad():
            assert torch.equal(ours(x), theirs(x))
    assert all(programs(ours))


def test_a_retained_graph_is_walked_and_then_played():
    ours, theirs = pair(NETS["basic"]())
    x = images(3, 17, 15, dtype=torch.float32)
    for _ in range(2):
        for model in (ours, theirs):
            model.zero_grad()
            z = model(x)
            z.backward(upstream([z])[0], retain_graph=True)
            z.backward(upstream([z], seed=1)[0])
            with pytest.raises(RuntimeError, match="second time"):
                z.backward(upstream([z])[0])
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    ours, theirs = pair(NETS["basic"]().eval())
    for _ in range(2):
        for model in (ours, theirs):
            model.zero_grad()
            xs = [images(3, 17, 15, dtype=torch.float32, seed=seed, grad=True) for seed in (1, 2)]
            sum(checkpoint(model, x, use_reentrant=reentrant).square().sum() for x in xs).backward()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    "move", [lambda t: t.clone(), lambda t: t.clone() if t.numel() > 5000 else t], ids=["all", "large ones"]
)
def test_what_autograd_keeps_elsewhere_is_read_there(move):
    """torch.autograd.graph.save_on_cpu keeps it elsewhere, or a hook that compresses."""
    ours, theirs = pair(NETS["basic"]())
    x = images(3, 17, 15, dtype=torch.float32)
    for _ in range(2):
        with torch.autograd.graph.saved_tensors_hooks(move, lambda t: t):
            found = step(ours, x)
        assert_same_bits(found, step(theirs, x))
