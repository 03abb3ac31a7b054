"""Replayed regions, with a recorder that launches again what it was given: a CUDA graph does the same on a
GPU."""

from __future__ import annotations

import gc

import pytest
import torch
from nets import resnet
from torch.utils.checkpoint import checkpoint

from bench.oracle.networks import images
from bench.oracle.stock import assert_same, fused, run, stock, tolerance, upstream
from fastbn.engine import region
from fastbn.engine.executor import KEYS
from fastbn.engine.fuse import fused_forward
from fastbn.engine.triton import tf32
from fastbn.engine.triton.cuda_graphs import CudaGraphs, GraphRecording, uncollected

TOL = tolerance(torch.float64)


class Recorder:
    """Runs nothing while it records, as a capture does; a replay overwrites what the one before left."""

    def __init__(self) -> None:
        self.made: list[GraphRecording] = []

    def __call__(self, launches):
        recorded = getattr(launches, "__self__", None)
        if recorded is None:
            return launches  # of a backward
        self.made.append(recorded)

        def replay() -> None:
            for t in (*getattr(recorded, "_made", ()), *getattr(recorded, "saved", ())):
                t.zero_() if t.dtype == torch.bool else t.fill_(float("nan"))
            launches()

        return replay


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()
    monkeypatch.setattr(
        region, "executor_of", lambda engine: CudaGraphs(lambda device: made, lambda device: True)
    )
    return made


@pytest.fixture
def model():
    return resnet(8, 4).double()


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_loop_records_once_and_equals_stock(recorder, model):
    ours, theirs = fused(model), stock(model)
    for step in range(5):
        x = images(3, seed=step)
        assert_same(run(ours, x), run(theirs, x), TOL)
    assert len(recorder.made) == 1


def test_a_loss_that_lives_on_keeps_no_recording(recorder, model):
    """The usual loop holds its last loss while the next forward runs."""
    ours = fused(model)
    for _ in range(4):
        loss = ours(images(3)).square().sum()
        loss.backward()
    assert len(recorder.made) == 1


def test_two_forwards_alive_before_either_backward(recorder, model):
    ours, theirs = fused(model), stock(model)
    for model in (ours, theirs):
        model.eval()  # else running statistics move in another order
        for _ in range(2):
            outputs = [model(images(3, seed=seed)) for seed in (1, 2, 3)]
            for z in outputs:
                z.backward(upstream([z])[0])
    assert len(recorder.made) == 3
    for a, b in zip(gradients(ours), gradients(theirs), strict=True):
        torch.testing.assert_close(a, b)


def test_retain_graph(recorder, model):
    ours = fused(model)
    for _ in range(3):
        ours.zero_grad()
        loss = ours(images(3)).square().sum()
        loss.backward(retain_graph=True)
        once = gradients(ours)
        loss.backward()
        for a, b in zip(once, gradients(ours), strict=True):
            torch.testing.assert_close(2 * a, b)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()
    assert len(recorder.made) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(recorder, model, reentrant):
    """What autograd kept may be recomputed by another recording, or by none."""
    ours, theirs = fused(model).eval(), stock(model).eval()
    for _ in range(3):
        for model in (ours, theirs):
            model.zero_grad()
            xs = [images(3, seed=seed, grad=True) for seed in (1, 2)]
            outputs = [checkpoint(model, x, use_reentrant=reentrant) for x in xs]
            sum(z.square().sum() for z in outputs).backward()
        for a, b in zip(gradients(ours), gradients(theirs), strict=True):
            torch.testing.assert_close(a, b)


def test_without_gradients(recorder, model):
    ours, theirs = fused(model).eval(), stock(model).eval()
    with torch.no_grad():
        outputs = [ours(images(3, seed=seed)) for seed in (1, 2, 3, 4)]
        for seed, z in zip((1, 2, 3, 4), outputs, strict=True):
            torch.testing.assert_close(z, theirs(images(3, seed=seed)))
    assert len(recorder.made) == 1


def changes(model):
    yield lambda: model.bn1.eval()
    yield lambda: setattr(model.layer1[0].bn1, "momentum", 0.5)
    yield lambda: setattr(model.layer1[0].bn2, "eps", 0.5)
    yield lambda: setattr(model.bn1.weight, "data", model.bn1.weight.data * 2)
    yield lambda: model.bn1.weight.requires_grad_(False)
    yield lambda: model.load_state_dict({name: value * 1.5 for name, value in model.state_dict().items()})


def test_every_change_of_the_modules_is_seen(recorder, model):
    ours, theirs = fused(model), stock(model)
    for pair in zip(changes(ours), changes(theirs), strict=True):
        for change in pair:
            change()
        for seed in range(3):
            assert_same(run(ours, images(3, seed=seed)), run(theirs, images(3, seed=seed)), TOL)


def test_few_shapes_are_kept(recorder, model):
    ours, theirs = fused(model), stock(model)
    for _ in range(2):
        for batch in range(1, KEYS + 3):
            for _ in range(2):
                assert_same(run(ours, images(batch)), run(theirs, images(batch)), TOL)
    _, program = ours.forward.program(torch.device("cpu"), torch.float64, {})
    assert fused_forward(ours) and len(program.region0.executor._free) == KEYS


def test_tensors_of_inference_are_recorded_apart(recorder, model):
    """Nothing else may write to them."""
    model, x = fused(model).eval(), images(3)
    expected = model(x).detach()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            for _ in range(3):
                assert torch.equal(model(x), expected)
    assert len(recorder.made) == 2


def test_tf32_is_part_of_what_is_recorded(recorder, model):
    model = fused(model).eval()
    with torch.no_grad():
        for allowed in (True, False, True):
            with tf32.allowed(allowed):
                for _ in range(2):
                    model(images(3))
    assert len(recorder.made) == 2


def test_no_garbage_is_collected_while_a_graph_is_captured():
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_where_memory_does_not_hold_a_recording_the_walk_goes_on(monkeypatch, model):
    """It says so once; statistics count every batch once."""
    asked = []

    def record(launches):
        asked.append(launches)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    monkeypatch.setattr(
        region, "executor_of", lambda engine: CudaGraphs(lambda device: record, lambda device: True)
    )
    ours, theirs = fused(model), stock(model)
    with pytest.warns(UserWarning, match="memory does not hold a recording") as said:
        for step in range(4):
            x = images(3, seed=step)
            assert_same(run(ours, x), run(theirs, x), TOL)
    assert len(asked) == len(said) == 1


def test_another_error_of_a_recording_is_raised(monkeypatch, model):
    def record(launches):
        raise RuntimeError("another")

    monkeypatch.setattr(
        region, "executor_of", lambda engine: CudaGraphs(lambda device: record, lambda device: True)
    )
    ours = fused(model)
    ours(images(3))
    with pytest.raises(RuntimeError, match="another"):
        ours(images(3))
