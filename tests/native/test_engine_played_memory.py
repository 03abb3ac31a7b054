"""Played programs that overlap, take turns, and touch nothing beside their memory."""

from __future__ import annotations

import threading

import pytest
import torch
from nets import chain
from played import NETS, assert_same_bits, pair, programs, step
from torch import nn

from bench.oracle.networks import images
from bench.oracle.stock import upstream
from fastbn import freeze
from fastbn.engine.executor import KEYS
from fastbn.engine.native import build, program

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


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
