"""The CPU kernels one by one: what the engine's operations return against the same formula in float64, on
odd shapes."""

from __future__ import annotations

import itertools

import pytest
import torch

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
    rows,
    source,
    target,
    two_paths,
)
from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import BackpropPath, Mask
from fastbn.engine.native import build, weight_layout
from fastbn.engine.native import engine as native
from fastbn.engine.native.algorithms import RAW
from fastbn.graph.activations import RELU

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
TOLERANCE = 2e-6  # of one convolution, direct or by Winograd, norm-wise against float64
STORED = {torch.float32: TOLERANCE, torch.bfloat16: 2.0**-8}  # bfloat16: the one rounding of what is stored

CASES = [
    Case("the CIFAR stem", 3, 32, 32, 3, 16),
    Case("sixteen channels: direct", 5, 32, 32, 16, 16),
    Case("Winograd, several images an item", 37, 16, 16, 32, 32),
    Case("Winograd, tiles beyond both edges", 20, 7, 9, 64, 64),
    Case("Winograd, channels that fill no vector", 3, 13, 11, 40, 72),
    Case("a projection's 3×3, both extents odd", 3, 13, 11, 24, 40, stride=2),
    Case(
        "a projection's 1×1, which reads every other pixel", 3, 13, 11, 24, 40, kernel=1, stride=2, padding=0
    ),
    Case(
        "the same, extents even: the last row and column are skipped",
        2,
        8,
        6,
        16,
        32,
        kernel=1,
        stride=2,
        padding=0,
    ),
    Case("the ImageNet stem", 1, 33, 31, 3, 16, kernel=7, stride=2, padding=3),
    Case("bands of rows", 1, 112, 112, 64, 64),
    Case("bands of rows at stride 2", 2, 57, 61, 64, 128, stride=2),
    Case("a bottleneck's 1×1", 2, 28, 28, 256, 64, kernel=1, padding=0),
    Case("one pixel", 4, 1, 1, 64, 128),
    Case("a dilated kernel", 2, 6, 5, 8, 8, padding=2, dilation=2),
    Case("stride 3, kernel 5, channels below a vector", 2, 9, 10, 5, 7, kernel=5, stride=3, padding=2),
    Case("512 channels", 2, 4, 4, 512, 512),
    Case(
        "padding beyond the kernel: the last band reads below the image", 1, 4, 9, 8, 8, kernel=1, padding=1
    ),
    Case("the same at stride 2", 1, 7, 9, 8, 8, stride=2, padding=2),
]
GROUPED = [
    Case("depthwise 3×3", 3, 13, 11, 40, 40, groups=40),
    Case("depthwise, whole vectors, bands of rows", 2, 56, 40, 32, 32, groups=32),
    Case("depthwise at stride 2, both extents odd", 3, 13, 11, 19, 19, stride=2, groups=19),
    Case("depthwise at stride 2, extents even", 2, 12, 10, 24, 24, stride=2, groups=24),
    Case("depthwise 5×5 at stride 2", 2, 15, 14, 24, 24, kernel=5, stride=2, padding=2, groups=24),
    Case("depthwise 7×7", 2, 14, 9, 20, 20, kernel=7, padding=3, groups=20),
    Case("depthwise, dilated", 2, 9, 10, 16, 16, padding=2, dilation=2, groups=16),
    Case(
        "depthwise, dilated at stride 2: some rows reach no tap",
        1,
        9,
        10,
        16,
        16,
        padding=2,
        dilation=2,
        stride=2,
        groups=16,
    ),
    Case(
        "depthwise 1×1 at stride 3: rows that nobody reads",
        2,
        8,
        7,
        9,
        9,
        kernel=1,
        stride=3,
        padding=0,
        groups=9,
    ),
    Case("depthwise, no padding", 2, 9, 8, 33, 33, padding=0, groups=33),
    Case("depthwise, padding beyond the kernel", 1, 4, 9, 8, 8, kernel=1, padding=2, groups=8),
    Case("depthwise of one pixel, 1024 channels", 2, 1, 1, 1024, 1024, groups=1024),
    Case("two outputs a channel", 2, 9, 7, 12, 24, groups=12),
    Case("groups of 4", 2, 9, 7, 32, 32, groups=8),
    Case("groups of 24: blocks that touch two groups", 2, 9, 7, 72, 72, groups=3),
    Case("groups of 32, stride 2", 2, 14, 13, 64, 64, stride=2, groups=2),
    Case(
        "groups of 10 into 6, kernel 5, stride 3", 2, 9, 10, 20, 12, kernel=5, stride=3, padding=2, groups=2
    ),
    Case("groups, 1×1", 2, 7, 7, 48, 96, kernel=1, padding=0, groups=4),
    Case("groups, dilated at stride 2", 2, 10, 9, 16, 32, padding=2, dilation=2, stride=2, groups=2),
]
CASES += GROUPED


BOTH = [*((case, torch.float32) for case in CASES), *((case, torch.bfloat16) for case in CASES[1::3])]


@pytest.fixture(scope="module")
def engine() -> native.Native:
    return native.Native()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("case, dtype", BOTH, ids=lambda given: getattr(given, "why", str(given)))
def test_forward(engine, case, kind, dtype):
    check(forward_errors(engine, case, kind, dtype, STORED[dtype]))


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("case, dtype", BOTH, ids=lambda given: getattr(given, "why", str(given)))
def test_gradient(engine, case, masked, dtype):
    check(gradient_errors(engine, case, masked, dtype, STORED[dtype]))


class Unpacked(native.Native):
    """Every convolution by the direct sum, of the weight as the model holds it."""

    order = torch.contiguous_format

    def pack(self, conv, weight, dtype, gradients=None, size=None, by=None):
        weight = weight.contiguous(memory_format=self.order)
        packed = weight_layout.pack(conv, weight, RAW, self.lanes)
        assert weight.dtype != torch.float32 or packed.forward.data_ptr() == weight.data_ptr()
        return packed


class UnpackedChannelsLast(Unpacked):
    order = torch.channels_last


@pytest.mark.parametrize("kernels", [Unpacked, UnpackedChannelsLast])
@pytest.mark.parametrize("case", [case for case in CASES[::2] if case.groups == 1], ids=lambda case: case.why)
def test_weights_that_were_not_packed(case, kernels):
    check(forward_errors(kernels(), case, "residual", torch.float32, TOLERANCE))
    check(gradient_errors(kernels(), case, "saved", torch.float32, TOLERANCE))


WIDE = [
    Case("K in panels, a pixel step beside a power of two", 2, 5, 5, 512, 80, kernel=1, padding=0),
    Case("K in uneven panels, rows gathered into tiles", 3, 4, 4, 264, 40),
    Case("parts of the output channels, two of them uneven", 2, 7, 7, 136, 328),
    Case("the same at stride 2", 2, 7, 5, 136, 328, stride=2),
    Case("parts by Winograd", 2, 6, 6, 256, 320),
    Case("one row", 5, 1, 9, 72, 48),
]


@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.why)
@pytest.mark.parametrize("kernels", [native.Native, Unpacked, UnpackedChannelsLast])
def test_wide_convolutions(case, kernels):
    check(forward_errors(kernels(), case, "projection", torch.float32, TOLERANCE))
    check(gradient_errors(kernels(), case, "again", torch.float32, TOLERANCE))


def test_frozen_statistics(engine):
    check(forward_errors(engine, CASES[5], "residual", torch.float32, TOLERANCE, batch=False))
    check(gradient_errors(engine, CASES[5], "saved", torch.float32, TOLERANCE, batch=False))


def test_bfloat16_is_rounded_as_torch_rounds_it(engine):
    """Ties to even, infinities, a NaN; and what no vector holds whole."""
    y = activation(2, 19, 5, 3, seed=1)
    special = torch.tensor(
        [
            1 + 2.0**-8,
            1 + 3 * 2.0**-8,
            -1 - 2.0**-8,
            3.4e38,
            float("inf"),
            -float("inf"),
            float("nan"),
            0.0,
            -0.0,
        ]
    )
    y[0, : len(special), 0, 0] = special
    ds, _ = engine.gradient([], [y.to(torch.bfloat16), y.to(torch.bfloat16)], None, tuple(y.shape))
    expected = (2 * y.to(torch.bfloat16).float()).to(torch.bfloat16)
    assert torch.equal(ds.nan_to_num(7.0), expected.nan_to_num(7.0)) and torch.equal(
        ds.isnan(), expected.isnan()
    )
    one, wanted = Case("", 2, 5, 3, 19, 19, kernel=1, padding=0).conv(), target(19)
    x = (3 * y).to(torch.bfloat16)
    packed = engine.pack(one, torch.eye(19)[:, :, None, None] / 3, torch.float32)
    found, _ = engine.convolve(one, packed, x[1:], False, False, wanted)
    assert torch.equal(found, (x[1:].float() * torch.tensor(1 / 3)).to(torch.bfloat16))
    assert (
        relative(wanted.norm.vectors[0], rows(found).mean(0)) < 1e-6
    )  # the statistics are of what is stored


def test_two_paths_and_three_added_terms(engine):
    found, expected = two_paths(engine)
    assert relative(found, expected) < TOLERANCE


def test_statistics_of_a_large_mean(engine):
    check(large_mean_errors(engine, exact=1e-7))


@pytest.mark.parametrize("channels", [16, 64])
@pytest.mark.parametrize("by", [Algorithm.DIRECT, Algorithm.WINOGRAD_4])
def test_nan_passes(by, channels):
    engine = native.Native(exact=by is Algorithm.DIRECT)
    assert engine.algorithm(Case("", 2, 8, 8, channels, channels).conv()) is by
    check(nan_errors(engine, c=channels))


def test_the_same_bits_at_any_thread_count(engine):
    """Items are cut by shape alone and their sums merged in order."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([])
            for case, kind in itertools.product((CASES[1], CASES[3], CASES[9]), SOURCES[1:3]):
                conv, (read, _), wanted = case.conv(), source(kind, case), target(case.oc)
                packed = engine.pack(conv, draw(case.oc, case.c, 3, 3, seed=5), torch.float32)
                y, formed = engine.convolve(conv, packed, read, True, True, wanted)
                path = BackpropPath(conv, packed, y, y, tuple(draw(3, case.oc, seed=9)))
                out = affine(case.c)
                mask = Mask(RELU, formed.mask, read.ys, read.norms, (out,))
                ds, _ = engine.gradient([path], [formed.z], mask, tuple(formed.z.shape))
                results[-1] += [y, wanted.norm.vectors, formed.z, ds, out]
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
