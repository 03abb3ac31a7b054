"""The captured step's bookkeeping, with a recorder that launches again what it was given: a CUDA graph
does the same on a GPU."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from runs import network
from torch.autograd.graph import get_gradient_edge

from fastbn import freeze
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.engine import region
from fastbn.engine.context import unrecorded
from fastbn.engine.triton.cuda_graphs import CudaGraphs
from fastbn.errors import MachineError
from fastbn.recipe import Recipe
from fastbn.training.cuda_graph import Captured
from fastbn.training.state.flat import Flat
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


class Recorder:
    """Runs nothing while it records, as a capture does."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, launches):
        self.recorded += 1

        def replay() -> None:
            with unrecorded():  # a graph asks nobody
                launches()

        return replay


def train(recorder, **settings):
    """Two epochs of two whole batches and a ragged one; the parameters and each epoch's totals."""
    draw = torch.Generator().manual_seed(0)
    images = Images(
        torch.randint(0, 256, (20, 8, 8, 3), dtype=torch.uint8, generator=draw), torch.arange(20) % 10
    )
    recipe = Recipe(epochs=2, batch_size=8, **settings).resolved(2)
    step = TrainingStep(freeze(network(), "bn"), Resident(images), recipe)
    if recorder:
        step._take = Captured(step._compute, CPU, lambda device: recorder)
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
    # the whole batch; in the second epoch that again, which the ragged one's first step let go, and this
    assert recorder.recorded == 3
    assert torch.equal(vector, expected)
    assert totals == sums


def test_what_a_step_is_recorded_with_is_not_recorded_apart(monkeypatch):
    """Slices of a batch call the model several times in a step: a region that recorded them for itself
    would hold a step's memory twice."""
    kept, own = Recorder(), Recorder()
    graphs = lambda engine: CudaGraphs(lambda device: kept, lambda device: True)  # noqa: E731
    monkeypatch.setattr(region, "executor_of", graphs)
    vector, totals = train(own, bn_batch=2)
    assert own.recorded == 3 and kept.recorded == 0
    expected, sums = train(None, bn_batch=2)
    assert kept.recorded > 0 and torch.equal(vector, expected) and totals == sums


def test_the_ragged_batch_runs_where_nothing_recorded_holds_memory():
    """A plan may leave room for one batch size's step alone. What a graph held is free when nothing refers
    to it."""
    alive, found = [], []

    class Held:
        """A recording, and the memory that it holds."""

        def __init__(self, launches):
            self.launches = launches

        def __call__(self):
            self.launches()

    def record(launches):
        held = Held(launches)
        alive.append(weakref.ref(held))
        return held

    def compute(inputs, lr, totals):
        found.append((len(inputs[0]), sum(reference() is not None for reference in alive)))

    captured, totals = Captured(compute, CPU, lambda device: record), Totals.zero(CPU)
    for n in (8, 8, 8, 3, 8, 3, 8):
        captured((torch.zeros(n),), torch.ones(()), totals)
    assert found == [(8, 0), (8, 1), (8, 1), (3, 0), (8, 1), (3, 2), (8, 2)]


def test_parameters_part_from_the_nodes_of_an_earlier_result():
    """On CUDA such a node waits for the stream which it was made on, and a step that is being captured
    can't."""
    model = freeze(network(), "bn")
    loss = model(torch.randn(2, 3, 8, 8)).square().mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    for p in parameters:
        get_gradient_edge(p).node.metadata["earlier"] = True
    assert all("earlier" in get_gradient_edge(p).node.metadata for p in parameters)
    flat = Flat(model)
    assert not any("earlier" in get_gradient_edge(p).node.metadata for p in parameters)
    before = flat.vector.clone()
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.dtype == torch.float32 for p in parameters) and torch.equal(
        flat.vector, before
    )
    assert loss.isfinite()


REFUSALS = {
    "CUDA error: operation not permitted when stream is capturing": MachineError,
    "CUDA out of memory": RuntimeError,
}


@pytest.mark.parametrize(("error", "raised"), REFUSALS.items())
def test_a_step_that_can_not_be_recorded_says_so(error, raised):
    def record(launches):
        raise RuntimeError(error)

    captured, totals = Captured(lambda inputs, lr, totals: None, CPU, lambda device: record), Totals.zero(CPU)
    captured((torch.zeros(8),), torch.ones(()), totals)
    with pytest.raises(raised, match=error) as found:
        captured((torch.zeros(8),), torch.ones(()), totals)
    assert ("--engine reference" in str(found.value)) == (raised is MachineError)
