"""The step: slices with statistics of their own, and another try where memory runs out."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import resnet

from bench.oracle.networks import norms
from bench.oracle.stock import error
from fastbn import fuse
from fastbn.data.feed import Resident
from fastbn.data.images import Images
from fastbn.errors import MachineError, is_out_of_memory
from fastbn.recipe import Recipe
from fastbn.training.planner import planner_of
from fastbn.training.step import TrainingStep
from fastbn.training.totals import Totals

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
N = 23  # 23 by slices of 8: 8, 8 and 7


def source() -> Resident:
    draw = torch.Generator().manual_seed(2)
    feed = Resident(
        Images(torch.randint(0, 256, (N, 9, 7, 3), dtype=torch.uint8, generator=draw), torch.arange(N) % 10)
    )
    feed.begin(0, 0)
    return feed


def recipe(**settings) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": N, "momentum": 0.0, "weight_decay": 0.0} | settings).resolved(
        2
    )


def step_of(model, settings, say=lambda line: None):
    feed = source()
    return TrainingStep(model, feed, settings, planner=planner_of(model, feed, settings), say=say), feed


class Wide(torch.nn.Module):
    """A network that computes in float64, whatever comes in."""

    def __init__(self, model):
        super().__init__()
        self.model = model.double()

    def forward(self, x):
        return self.model(x.double())


def test_slices_have_their_own_statistics_and_add_up():
    model = Wide(fuse(resnet(8).train(), "reference"))
    by_hand = copy.deepcopy(model)
    fuse(by_hand.model, "stock")
    step, feed = step_of(model, recipe(bn_batch=8))
    totals = Totals.zero(CPU)
    (indices,) = next(feed.batches(N))
    before = step.flat.vector.clone()
    step((indices,), 1.0, totals)
    feed = source()
    loss_sum, correct = 0.0, 0
    for part in indices.tensor_split(3):
        x, labels = feed.load(part)
        logits = by_hand(x)
        loss = F.cross_entropy(logits.double(), labels) * len(part) / N
        loss.backward()
        loss_sum, correct = loss_sum + loss.item(), correct + int((logits.argmax(1) == labels).sum())
    expected = torch.cat([p.grad.reshape(-1) for p in by_hand.parameters() if p.requires_grad])
    assert error(before - step.flat.vector, expected) < 1e-9
    assert (
        totals.loss.item() == pytest.approx(loss_sum * N, rel=1e-12)
        and int(totals.correct) == correct
        and totals.images == N
    )
    for ours, theirs in zip(norms(model), norms(by_hand), strict=True):
        assert error(ours.running_var, theirs.running_var) < 1e-9 and int(ours.num_batches_tracked) == 3


class Runs:
    """A forward that runs out of memory when it is told to, after the statistics of its first layers have
    moved."""

    def __init__(self, model, times, error):
        self.model, self.left, self.error, self.forward = model, times, error, model.forward

    def __call__(self, x):
        logits = self.forward(x)
        if self.left:
            self.left -= 1
            raise self.error
        return logits


ERRORS = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
        "8 bytes"
    ),
    "pool": MemoryError("Unable to allocate 8 GiB"),
    "triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "capture": RuntimeError("CUDA error: operation failed due to a previous error during capture"),
}
ERRORS["capture"].__context__ = ERRORS["cuda"]


@pytest.mark.parametrize("kind", ERRORS)
def test_an_allocator_that_has_no_more_is_known_by_what_it_says(kind):
    assert is_out_of_memory(ERRORS[kind])
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(RuntimeError("out of resource: shared memory, Required: 300000"))


@pytest.fixture(scope="module")
def untroubled(one_thread):
    """A step that memory holds, taken, and its totals."""
    step, feed = step_of(fuse(resnet(26, 8).float().train(), "native"), recipe())
    sums = Totals.zero(CPU)
    step(next(feed.batches(N)), 0.1, sums)
    return step, sums


@pytest.mark.parametrize("kind", ["cuda", "pool", "capture"])
def test_a_step_that_ran_out_of_memory_is_taken_again_and_counts_once(kind, monkeypatch, untroubled):
    (expected, sums), said = untroubled, []
    model = fuse(resnet(26, 8).float().train(), "native")
    step, feed = step_of(model, recipe(), said.append)
    first, runs = step.plan, Runs(model, 1, ERRORS[kind])
    monkeypatch.setattr(step, "model", runs)
    totals = Totals.zero(CPU)
    step(next(feed.batches(N)), 0.1, totals)
    assert torch.equal(step.flat.vector, expected.flat.vector)
    assert torch.equal(step.running.vector, expected.running.vector) and torch.equal(
        step.running.counts, expected.running.counts
    )
    assert (totals.loss, totals.correct, totals.images) == (sums.loss, sums.correct, sums.images)
    assert step.plan.memory.peak < first.memory.peak
    assert len(said) == 1 and "out of memory" in said[0] and "computed again in segments" in said[0]


def test_where_no_plan_is_smaller_the_error_says_so(monkeypatch):
    model = fuse(resnet(8, 8).float().train(), "native")
    step, feed = step_of(model, recipe())
    monkeypatch.setattr(step, "model", Runs(model, 10**9, ERRORS["pool"]))
    with pytest.raises(MachineError, match="with every block computed again"):
        step(next(feed.batches(N)), 0.1, Totals.zero(CPU))


def test_another_error_is_nobodys_to_catch(monkeypatch):
    model = fuse(resnet(8, 8).float().train(), "native")
    step, feed = step_of(model, recipe())
    monkeypatch.setattr(step, "model", Runs(model, 1, RuntimeError("another")))
    with pytest.raises(RuntimeError, match="another"):
        step(next(feed.batches(N)), 0.1, Totals.zero(CPU))


def test_dissolved_statistics_are_tensors_of_their_own():
    model = fuse(resnet(8).float().train(), "native")
    step, feed = step_of(model, recipe())
    step(next(feed.batches(N)), 0.1, Totals.zero(CPU))
    values = step.running.vector.clone()
    step.dissolve()
    buffers = [t for norm in norms(model) for t in (norm.running_mean, norm.running_var)]
    assert len({t.untyped_storage().data_ptr() for t in buffers}) == len(buffers)
    assert torch.equal(torch.cat([t.flatten() for t in buffers]), values)
