"""The Triton kernels one by one: what the engine's operations return against the same formula in float64,
on odd shapes."""

from __future__ import annotations

import itertools

import interpreted  # first: it decides whether these tests can run
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu import kernels
from bench.oracle.errors import relative
from bench.oracle.operations import (
    MASKS,
    SOURCES,
    Case,
    activation,
    affine,
    check,
    draw,
    forward_errors,
    gradient_errors,
    large_mean_errors,
    nan_errors,
    norm,
    source,
    target,
)
from bench.oracle.triton_cases import CASES, Routed
from fastbn.engine.interface import BackpropPath, LazyActivation, Mask
from fastbn.engine.triton import tuning
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS
from fastbn.graph.activations import RELU
from fastbn.kernels.triton import batchnorm_pending

if interpreted.DEVICE != "cpu":
    pytest.skip("on a GPU bench/gpu_check.sh holds the kernels to more", allow_module_level=True)

# half: one rounding of y, 2⁻¹¹, and of what it is made of
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}


def engine_for(case: Routed) -> Triton:
    return Triton(by=case.by)


def combinations(kinds, fast, first):
    """Return every kind in both precisions; without the slow marker one a case, of `fast`, in the precisions
    by turns, beginning with the `first`."""
    quick = [*zip(fast, TOLERANCE, strict=True)]
    return [
        pytest.param(
            case,
            *pair,
            id=f"{case.why}-{pair[0]}-{pair[1]}",
            marks=() if pair == quick[(number + first) % 2] else pytest.mark.slow,
        )
        for number, case in enumerate(CASES)
        for pair in itertools.product(kinds, TOLERANCE)
    ]


@pytest.mark.parametrize("case, kind, dtype", combinations(SOURCES, ("residual", "projection"), 0))
def test_forward(case, kind, dtype):
    check(forward_errors(engine_for(case), case, kind, dtype, TOLERANCE[dtype]))


@pytest.mark.parametrize("case, masked, dtype", combinations(MASKS, ("saved", "again"), 1))
def test_gradient(case, masked, dtype):
    check(gradient_errors(engine_for(case), case, masked, dtype, TOLERANCE[dtype]))


@pytest.mark.parametrize("by", [TAPS, ROLLING, LIBRARY])
def test_frozen_statistics(by):
    case = Routed("", 2, 5, 4, 16, 16, by=by)
    check(forward_errors(engine_for(case), case, "residual", torch.float32, 2e-6, batch=False))
    check(gradient_errors(engine_for(case), case, "saved", torch.float32, 2e-6, batch=False))


@pytest.mark.parametrize("by", [TAPS, LIBRARY])
def test_two_paths_and_three_added_terms(by):
    assert all(found < 2e-6 for _, found, _ in kernels.two_paths(by, torch.float32))


@pytest.mark.parametrize(
    "case",
    [Routed("", 2, height, 17, 16, 16, by=by) for by, height in ((TAPS, 5), (ROLLING, 9), (LIBRARY, 7))],
    ids=lambda case: case.by,
)
def test_more_programs_than_are_merged_at_once(case, monkeypatch):
    """Four at a time, in place of 64 at so few channels."""
    seen = []

    def block_t(given):
        seen.append(0 if given is None else given.tiles)
        return 4

    monkeypatch.setattr(batchnorm_pending, "block_t", block_t)
    check(forward_errors(engine_for(case), case, "formed", torch.float32, 2e-6))
    check(gradient_errors(engine_for(case), case, "again", torch.float32, 2e-6))
    assert max(seen) > 4


@pytest.mark.parametrize("by", [TAPS, ROLLING, LIBRARY])
@pytest.mark.parametrize("errors", [nan_errors, large_mean_errors])
def test_unusual_numbers(errors, by):
    check(kernels.unusual(errors, by))


@pytest.mark.parametrize("by", [TAPS, ROLLING, LIBRARY])
def test_nothing_is_read_before_it_is_written(by):
    """With NaN in every fresh tensor, a second round gives the same bits."""
    case = Routed("", 3, 7, 5, 16, 16, by=by)
    engine, conv, results = engine_for(case), case.conv(), []
    packed = engine.pack(conv, case.weight(), torch.float32)
    torch.use_deterministic_algorithms(True)  # fills fresh tensors with NaN
    try:
        for _ in range(2):
            (read, _), wanted, out = source("residual", case), target(16), affine(16)
            y, formed = engine.convolve(conv, packed, read, True, True, wanted)
            mask = Mask(RELU, formed.mask, read.ys, read.norms, (out,))
            engine.ready(wanted.norm)
            ds, (due,) = engine.gradient(
                [BackpropPath(conv, packed, y, y, tuple(draw(3, 16, seed=9)))], [], mask, case.source
            )
            results.append([y, formed.z, wanted.norm.vectors, ds, out, *engine.settle(due)])
    finally:
        torch.use_deterministic_algorithms(False)
    assert not any(t.isnan().any() for t in results[0])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


SETTLED = {
    "batch statistics": (True, 0.1),
    "frozen statistics": (False, 0.1),
    "cumulative statistics": (True, None),
}


@pytest.mark.parametrize(("batch", "momentum"), SETTLED.values(), ids=SETTLED)
def test_who_settles_makes_no_difference(batch, momentum, monkeypatch):
    """The kernel that reads next, on its way, or a launch of its own, which reads more results at a time and
    so adds up in another order: the same but for that, and running statistics move once."""
    case = Routed("", 3, 7, 5, 16, 16, by=ROLLING)
    engine, conv, x = engine_for(case), case.conv(), activation(3, 16, 7, 5, seed=1)
    packed, results = engine.pack(conv, case.weight(), torch.float32), []
    for most in (batchnorm_pending.MOST, 0):
        monkeypatch.setattr(batchnorm_pending, "MOST", most)
        first, second, outs = target(16, batch), target(16, batch, seed=30), (affine(16), affine(16))
        first.module.momentum = second.module.momentum = momentum
        y, _ = engine.convolve(conv, packed, x, False, False, first)
        assert first.norm.vectors.isnan().all()
        z, _ = engine.convolve(
            conv, packed, LazyActivation((y,), (first.norm,), None, RELU), False, False, second
        )
        engine.ready(second.norm)
        ds, (due,) = engine.gradient([], [z], Mask(RELU, None, (z,), (second.norm,), outs[:1]), case.source)
        assert outs[0].isnan().all()
        dx, (last,) = engine.gradient(
            [BackpropPath(conv, packed, ds, z, due)],
            [],
            Mask(RELU, None, (y,), (first.norm,), outs[1:]),
            case.source,
        )
        coefficients = engine.settle(last)
        results.append([y, z, ds, dx, *outs, first.norm.vectors, second.norm.vectors])
        results[-1] += [t for t in coefficients if t is not None]
        results[-1] += [t.clone() for each in (first, second) for t in each.module.buffers()]
        assert int(first.module.num_batches_tracked) == batch
    assert not any(t.isnan().any() for t in results[0])
    assert all(
        torch.equal(a, b) if a.dtype == torch.int64 else relative(a, b) < 1e-5
        for a, b in zip(*results, strict=True)
    )


def test_choice():
    def by(c: int, oc: int, **others: int) -> str:
        return tuning.usual(Case("", 1, 8, 8, c, oc, **others).conv())

    assert by(16, 16) == by(32, 32) == by(64, 64) == ROLLING
    assert by(3, 16) == by(16, 32, stride=2) == by(48, 48) == by(256, 64, kernel=1, padding=0) == TAPS
    assert by(128, 128) == by(256, 256, stride=2) == by(32, 32, groups=32) == LIBRARY


class Convolutions(TorchDispatchMode):
    """The layouts and dtypes of what aten's convolution_backward is given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.given.append(
                [(t.is_contiguous(memory_format=torch.channels_last), t.dtype) for t in arguments[:3]]
            )
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("activations", [torch.float16, torch.float32])
def test_the_library_is_given_channels_last_throughout(masked, activations):
    """An input of another layout would have dy rearranged, there and back. Gradients may be stored
    otherwise than activations."""
    case, engine = Routed("", 3, 5, 4, 16, 24, by=LIBRARY), Triton(by=LIBRARY)
    ds, y = (activation(*case.conv().shape(case.source), seed=seed) for seed in (1, 2))
    packed = engine.pack(case.conv(), case.weight(), activations, torch.float32)
    path = BackpropPath(case.conv(), packed, ds, y.to(activations), (torch.ones(24), None, None))
    own = (
        Mask(
            RELU, None, (activation(*case.source, seed=3, dtype=activations),), (norm(16, 4),), (affine(16),)
        )
        if masked
        else None
    )
    with Convolutions() as seen:
        found, _ = engine.gradient([path], [], own, case.source)
    assert seen.given == [[(True, torch.float32)] * 3] and found.is_contiguous(
        memory_format=torch.channels_last
    )
