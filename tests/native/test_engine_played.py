"""Regions played by the CPU's library: the walk's own bits, and the walk where a program does not serve."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from nets import chain, resnet
from torch import nn
from torch.utils.checkpoint import checkpoint

from bench.oracle.networks import images
from bench.oracle.stock import upstream
from fastbn import freeze, fuse
from fastbn.engine import walk
from fastbn.engine.context import recomputing
from fastbn.engine.executor import KEYS, Eager
from fastbn.engine.native import build, program
from fastbn.engine.recomputation import Recompute
from fastbn.engine.region import FusedRegion

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
NETS = {
    "basic": lambda: resnet(14, 16),
    "odd channels": lambda: resnet(8, 12),
    "ImageNet's, a region before the pooling": lambda: resnet(18, 8, "imagenet"),
    "bottlenecks": lambda: resnet(50, 4, "imagenet"),
}


def regions(model):
    return [
        m
        for _, program in model.forward._programs.values()
        for m in program.children()
        if isinstance(m, FusedRegion)
    ]


def pair(model, batch=2):
    """Return the model fused twice, the second always walked. Only for the modes that it is in."""
    ours, theirs = (fuse(copy.deepcopy(model).float(), "native") for _ in "ab")
    theirs(images(batch, 17, 15, dtype=torch.float32))
    theirs.load_state_dict(model.state_dict())
    for region in regions(theirs):
        region.executor = Eager()
    return ours, theirs


def programs(model):
    return [program for region in regions(model) for program, _ in region.executor._programs.values()]


def step(model, x, **keywords):
    """Return the output, all gradients and buffers of a step with a random upstream gradient."""
    model.zero_grad()
    z = model(x)
    z.backward(upstream([z])[0], **keywords)
    made = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [
        z.detach().clone(),
        *made,
        *(b.clone() for b in model.buffers()),
        *([] if x.grad is None else [x.grad.clone()]),
    ]


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


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


def test_gradient_from_one_of_two_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = chain(nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 16, 3, bias=False))

        def forward(self, x):
            first = self.trunk.norms[0](self.trunk.convs[0](x)).relu()
            return first, self.trunk.norms[1](self.trunk.convs[1](first)).relu()

    ours, theirs = pair(freeze(Two()))
    x = images(3, 17, 15, dtype=torch.float32)
    for which in (0, 1, [0, 1], 0):
        for model in (ours, theirs):
            model.zero_grad()
            outputs = model(x)
            chosen = [outputs[i] for i in ([which] if isinstance(which, int) else which)]
            torch.autograd.backward(chosen, upstream(chosen))
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))


def test_forwards_that_overlap_have_memory_of_their_own():
    ours, theirs = pair(NETS["basic"]().eval())
    for model in (ours, theirs):
        model.zero_grad()
        outputs = [model(images(2, 17, 15, dtype=torch.float32, seed=seed)) for seed in range(3)]
        for z in outputs:
            z.backward(upstream([z])[0])
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad is None or torch.equal(a.grad, b.grad)


def test_two_threads_take_turns():
    model, _ = pair(NETS["basic"]().eval())
    xs = [images(2, 17, 15, dtype=torch.float32, seed=seed) for seed in range(2)]
    with torch.no_grad():
        expected = [model(x) for x in xs]
    wrong = []

    def forwards(i):
        with torch.no_grad():
            for _ in range(30):
                if not torch.equal(model(xs[i]), expected[i]):
                    wrong.append(i)

    threads = [threading.Thread(target=forwards, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tensors_that_the_kernels_cannot_read_are_walked():
    ours, theirs = pair(NETS["basic"]())
    for model in (ours, theirs):
        old = model.layer1[0].bn1.running_mean
        model.layer1[0].bn1.running_mean = torch.stack([old, old + 1], 1)[:, 0]
    x = images(3, 17, 15, dtype=torch.float32)
    assert_same_bits(step(ours, x), step(theirs, x))
    assert programs(ours) == [None]


def test_few_programs_are_kept():
    ours, theirs = pair(NETS["odd channels"]())
    for batch in [*range(1, KEYS + 3), 1]:
        x = images(batch, 9, 7, dtype=torch.float32)
        assert_same_bits(step(ours, x), step(theirs, x))
    assert len(programs(ours)) == KEYS


def test_a_program_touches_nothing_beside_its_memory(monkeypatch):
    """Kept and scratch memory as large as the program says, between guards; and NaN wherever it has not
    yet written."""
    model, same = pair(NETS["bottlenecks"]())
    x = images(3, 17, 15, dtype=torch.float32)
    guards = []

    def empty(buffers, shape, dtype=torch.float32):
        size = torch.Size(shape).numel() * dtype.itemsize
        room = torch.full((size // 4 + 64,), float("nan"))
        room.view(torch.uint8)[size : size + 64] = 77
        guards.append(room.view(torch.uint8)[size : size + 64])
        return room.view(torch.uint8)[:size].view(dtype).view(shape)

    monkeypatch.setattr(program.Buffers, "empty", empty)
    for _ in range(2):
        assert_same_bits(step(model, x), step(same, x))
    assert guards and all((guard == 77).all() for guard in guards)
