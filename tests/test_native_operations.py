"""The CPU kernels one by one: what the engine's operations return against the same formula in float64, on odd shapes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.engine import build, native
from fastbn.engine.graph import Conv
from fastbn.engine.operations import Activation, Mask, Norm, Path

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
WIDE = torch.float64
TOLERANCE = 2e-6  # of one convolution, direct or by Winograd, norm-wise against float64


@dataclasses.dataclass(frozen=True)
class Case:
    why: str
    n: int
    h: int
    w: int
    c: int
    oc: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1

    def conv(self) -> Conv:
        def pair(x: int) -> tuple[int, int]:
            return x, x

        return Conv(
            "conv", "norm", 0, self.c, self.oc, pair(self.kernel), pair(self.stride), pair(self.padding), pair(self.dilation), 1, 0
        )


CASES = [
    Case("the CIFAR stem", 3, 32, 32, 3, 16),
    Case("sixteen channels: direct", 5, 32, 32, 16, 16),
    Case("Winograd, several images an item", 37, 16, 16, 32, 32),
    Case("Winograd, tiles beyond both edges", 20, 7, 9, 64, 64),
    Case("Winograd, channels that fill no vector", 3, 13, 11, 40, 72),
    Case("a projection's 3×3, both extents odd", 3, 13, 11, 24, 40, stride=2),
    Case("a projection's 1×1, which reads every other pixel", 3, 13, 11, 24, 40, kernel=1, stride=2, padding=0),
    Case("the same, extents even: the last row and column are skipped", 2, 8, 6, 16, 32, kernel=1, stride=2, padding=0),
    Case("the ImageNet stem", 1, 33, 31, 3, 16, kernel=7, stride=2, padding=3),
    Case("bands of rows", 1, 112, 112, 64, 64),
    Case("bands of rows at stride 2", 2, 57, 61, 64, 128, stride=2),
    Case("a bottleneck's 1×1", 2, 28, 28, 256, 64, kernel=1, padding=0),
    Case("one pixel", 4, 1, 1, 64, 128),
    Case("a dilated kernel", 2, 6, 5, 8, 8, padding=2, dilation=2),
    Case("stride 3, kernel 5, channels below a vector", 2, 9, 10, 5, 7, kernel=5, stride=3, padding=2),
    Case("512 channels", 2, 4, 4, 512, 512),
    Case("padding beyond the kernel: the last band reads below the image", 1, 4, 9, 8, 8, kernel=1, padding=1),
    Case("the same at stride 2", 1, 7, 9, 8, 8, stride=2, padding=2),
]
SOURCES = ("formed", "scale-shift-relu", "residual", "projection")


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activation(n: int, c: int, h: int, w: int, seed: int, mean: float = 0.5) -> Tensor:
    return (draw(n, h, w, c, seed=seed) + mean).permute(0, 3, 1, 2)


def norm(c: int, seed: int, batch: bool = True) -> Norm:
    return Norm(draw(4, c, seed=seed), batch)


def channels(t: Tensor) -> Tensor:
    return t.to(WIDE).view(1, -1, 1, 1)


def error(found: Tensor, expected: Tensor) -> float:
    return ((found.to(WIDE) - expected).norm() / expected.norm()).item()


def source(kind: str, case: Case) -> tuple[Tensor | Activation, Tensor]:
    """A convolution's source, and z in float64."""
    size = (case.n, case.c, case.h, case.w)
    y, first = activation(*size, seed=1), norm(case.c, 2)
    if kind == "formed":
        return y, y.to(WIDE)
    z = y.to(WIDE) * channels(first.scale) + channels(first.shift)
    if kind == "scale-shift-relu":
        return Activation((y,), (first,), None, True), z.relu()
    other, second = activation(*size, seed=3), norm(case.c, 4)
    if kind == "residual":
        return Activation((y,), (first,), other, True), (z + other.to(WIDE)).relu()
    return (
        Activation((y, other), (first, second), None, True),
        (z + other.to(WIDE) * channels(second.scale) + channels(second.shift)).relu(),
    )


@pytest.fixture(scope="module")
def engine() -> native.Native:
    return native.Native()


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_forward(engine, case, kind):
    conv, (read, z) = case.conv(), source(kind, case)
    weight = draw(case.oc, case.c, case.kernel, case.kernel, seed=5) / case.c**0.5
    y, statistics, formed = engine.convolve(conv, engine.pack(conv, weight, torch.float32), read, True, True, True)
    expected = F.conv2d(z, weight.to(WIDE), None, conv.stride, conv.padding, conv.dilation)
    assert error(y, expected) < TOLERANCE
    # the statistics are those of the stored y
    rows = y.to(WIDE).permute(0, 2, 3, 1).reshape(-1, case.oc)
    assert error(statistics.mean, rows.mean(0)) < 1e-6 and error(statistics.var, rows.var(0, correction=0)) < 1e-6
    assert (formed is None) == (kind == "formed")
    if formed is not None:
        assert error(formed.z, z) < 1e-6
        vectors = -(-case.c // engine._lanes)
        bits = formed.mask.view(-1, vectors, engine.mask_bytes(case.c) // vectors, 1) >> torch.arange(8, dtype=torch.uint8) & 1
        opened = bits.flatten(2)[:, :, : engine._lanes].flatten(1)[:, : case.c].bool()
        opened = opened.view(case.n, case.h, case.w, case.c).permute(0, 3, 1, 2)
        assert torch.equal(opened, formed.z > 0)


@pytest.mark.parametrize("masked", ["saved", "again", "none"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_gradient(engine, case, masked):
    """One path and an added term, masked, with the sums of the two raw outputs of a projection."""
    conv = case.conv()
    weight = draw(case.oc, case.c, case.kernel, case.kernel, seed=5) / case.c**0.5
    size = (case.n, case.c, case.h, case.w)
    out = conv.shape(size)
    ds, y, added = activation(*out, seed=6), activation(*out, seed=7), activation(*size, seed=8)
    coefficients = tuple(draw(3, case.oc, seed=9))
    path = Path(conv, engine.pack(conv, weight, torch.float32), ds, y, coefficients)
    ys, norms = (activation(*size, seed=10), activation(*size, seed=11)), (norm(case.c, 12), norm(case.c, 13))
    read = Activation(ys, norms, None, True)
    saved = engine.form(read, True)
    mask = {"saved": Mask(True, saved.mask, ys, norms), "again": Mask(True, None, ys[:1], norms[:1]), "none": None}[masked]
    found, sums = engine.gradient([path], [added], mask, size)

    dy = ds.to(WIDE) * channels(coefficients[0]) + y.to(WIDE) * channels(coefficients[1]) + channels(coefficients[2])
    expected = torch.nn.grad.conv2d_input(size, weight.to(WIDE), dy, conv.stride, conv.padding, conv.dilation) + added.to(WIDE)
    if masked == "saved":
        expected = expected * (saved.z > 0)
    if masked == "again":
        expected = expected * (engine.form(Activation(ys[:1], norms[:1], None, True), False).z > 0)
    assert error(found, expected) < TOLERANCE
    assert len(sums) == {"saved": 2, "again": 1, "none": 0}[masked]
    for (total, product), raw, own in zip(sums, ys, norms, strict=False):
        assert error(total, found.to(WIDE).sum((0, 2, 3))) < 1e-6
        assert error(product, (found.to(WIDE) * (raw.to(WIDE) - channels(own.mean))).sum((0, 2, 3))) < 1e-6


def test_two_paths_and_three_added_terms(engine):
    """A projection block's input: conv1ᵀ + projᵀ, of different kernels at stride 2, and more terms than the kernel adds itself."""
    size = (3, 24, 9, 11)
    three, one = Case("", 3, 9, 11, 24, 40, stride=2).conv(), Case("", 3, 9, 11, 24, 40, kernel=1, stride=2, padding=0).conv()
    paths, expected = [], torch.zeros(size, dtype=WIDE)
    for seed, conv in ((20, three), (30, one)):
        weight, (ds, y) = draw(40, 24, *conv.kernel, seed=seed), (activation(*conv.shape(size), seed=seed + k) for k in (1, 2))
        c1 = draw(40, seed=seed + 3)
        paths.append(Path(conv, engine.pack(conv, weight, torch.float32), ds, y, (c1, None, None)))
        expected += torch.nn.grad.conv2d_input(size, weight.to(WIDE), ds.to(WIDE) * channels(c1), conv.stride, conv.padding)
    added = [activation(*size, seed=40 + k) for k in range(3)]
    found, sums = engine.gradient(paths, added, None, size)
    assert error(found, expected + sum(t.to(WIDE) for t in added)) < TOLERANCE and sums == []


def test_statistics_of_a_large_mean(engine):
    """mean = 1000·std in float32: E[y²] − E[y]² would have no digit left."""
    case = Case("", 4, 9, 9, 16, 16, kernel=1, padding=0)
    conv = case.conv()
    x = activation(4, 16, 9, 9, seed=1, mean=1000.0)
    y, statistics, _ = engine.convolve(conv, engine.pack(conv, torch.eye(16)[:, :, None, None], torch.float32), x, False, False, True)
    rows = y.to(WIDE).permute(0, 2, 3, 1).reshape(-1, 16)
    assert error(statistics.mean, rows.mean(0)) < 1e-7 and error(statistics.var, rows.var(0, correction=0)) < 1e-5


@pytest.mark.parametrize("winograd", [False, True])
def test_nan_passes(engine, winograd):
    """A NaN pixel makes its neighbourhood NaN, through the ReLU, and its gradient's mask stays open."""
    c = 64 if winograd else 16
    case = Case("", 2, 8, 8, c, c)
    conv, y = case.conv(), activation(2, c, 8, 8, seed=1)
    y[1, 3, 4, 4] = float("nan")
    read = Activation((y,), (norm(c, 2),), activation(2, c, 8, 8, seed=3), True)
    weight = draw(c, c, 3, 3, seed=5)
    out, statistics, formed = engine.convolve(conv, engine.pack(conv, weight, torch.float32), read, True, True, True)
    assert out[1, :, 3:6, 3:6].isnan().all() and not out[0].isnan().any()
    assert statistics.mean.isnan().all() and statistics.var.isnan().all()
    ds, _ = engine.gradient([], [torch.ones_like(y)], Mask(True, formed.mask, (y,), read.norms), tuple(y.shape))
    assert ds[1, 3, 4, 4] == 1


def test_the_same_bits_at_any_thread_count(engine):
    """Items are cut by shape alone and their sums merged in order."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([])
            for case, kind in itertools.product((CASES[1], CASES[3], CASES[9]), SOURCES[1:3]):
                conv, (read, _) = case.conv(), source(kind, case)
                packed = engine.pack(conv, draw(case.oc, case.c, 3, 3, seed=5), torch.float32)
                y, statistics, formed = engine.convolve(conv, packed, read, True, True, True)
                path = Path(conv, packed, y, y, tuple(draw(3, case.oc, seed=9)))
                mask = Mask(True, formed.mask, read.ys, read.norms)
                ds, sums = engine.gradient([path], [formed.z], mask, tuple(formed.z.shape))
                results[-1] += [y, statistics.mean, statistics.var, formed.z, ds, *sums[0]]
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
