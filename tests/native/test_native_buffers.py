"""The blocks of memory that the native engine takes from step to step, and gives back."""

from __future__ import annotations

import gc
import random

import pytest
import torch

from fastbn import FastBNOnlyResNet
from fastbn.engine import select
from fastbn.engine.buffers import ROOM, Buffers
from fastbn.engine.native import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")


def test_memory_comes_back(monkeypatch):
    """After the first step nothing new is asked for, however often; forwards that are alive have blocks of
    their own."""
    # whatever other tests have left in the pool
    monkeypatch.setattr(select._native(False), "buffers", Buffers())
    model = FastBNOnlyResNet(8, width=4, engine="native")
    x = torch.randn(4, 3, 8, 8)

    def step():
        model(x).square().sum().backward()

    step()
    step()
    buffers = select._native(False).buffers
    before = buffers.bytes
    for _ in range(3):
        step()
    assert buffers.bytes == before
    alive = [model(x) for _ in range(4)]
    del alive
    gc.collect()
    assert buffers.bytes > before


def test_blocks_are_not_given_out_twice():
    buffers = Buffers()
    a = buffers.empty((4, 5))
    view = a[1:]
    del a
    b = buffers.empty((4, 5))
    b.fill_(1)
    view.fill_(2)  # a's block is still out, held by the view
    assert (b == 1).all() and buffers.bytes == 2 * 128  # whole cache lines
    del view
    assert buffers.empty((20,)).data_ptr() % 64 == 0 and buffers.bytes == 2 * 128


def test_large_blocks_of_many_sizes_share_a_room():
    """What comes back joins its neighbours: sizes that change at each step occupy what is out at once."""
    buffers, draw = Buffers(), random.Random(0)
    out: dict[int, tuple[torch.Tensor, int]] = {}
    for turn in range(400):
        if len(out) == 12:
            t, mark = out.pop(draw.choice(list(out)))
            assert (t == mark).all()  # nobody else wrote there
            del t
        t = buffers.empty((draw.randint(1 << 18, 1 << 20),))[:: 1 << 10]
        out[turn] = t.fill_(turn), turn
    assert buffers.bytes == ROOM  # of its 256 MB; a block for each size would have taken a GB
    out.clear()
    del t
    whole = buffers.empty((ROOM // 4,))
    assert buffers.bytes == ROOM and whole.data_ptr() % 64 == 0
