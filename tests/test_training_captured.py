"""The captured step's bookkeeping, with a recorder that launches again what it was given: a CUDA graph does the same on a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runs import network

from fastbn import freeze
from fastbn.config import Recipe
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.training.captured import Captured
from fastbn.training.step import Step, Totals

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class Recorder:
    """Runs nothing while it records, as a capture does."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, launches):
        self.recorded += 1
        return launches


def train(recorder):
    """Two epochs of two whole batches and a ragged one; the parameters and each epoch's totals."""
    draw = torch.Generator().manual_seed(0)
    images = Images(torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=draw), torch.arange(20) % 10)
    recipe = Recipe(epochs=2, batch_size=8).resolved(2)
    step = Step(freeze(network(), "bn"), Resident(images), recipe)
    if recorder:
        step._take = Captured(step._compute, CPU, recorder)
    found = []
    for number in range(2):
        totals = Totals.zero(CPU)
        step.feed.begin(0, number)
        for i, inputs in enumerate(step.feed.batches(8)):
            step(inputs, 0.1 / (1 + number + i), totals)
        found.append(dataclasses.astuple(totals))
    return step.flat.vector, found


def test_replays_equal_plain_steps():
    recorder = Recorder()
    (vector, totals), (expected, sums) = train(recorder), train(None)
    assert recorder.recorded == 2  # the whole batch, and the ragged one in its second epoch
    assert torch.equal(vector, expected)
    assert totals == sums
