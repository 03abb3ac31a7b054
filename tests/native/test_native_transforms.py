"""Winograd by weights that are transformed at every call, against the same formula in float64."""

from __future__ import annotations

import pytest
import torch

from bench.oracle.errors import relative
from bench.oracle.operations import Case, activation, check, draw, forward_errors, gradient_errors, target
from fastbn.engine.interface import BackpropPath
from fastbn.engine.native import build, weight_layout
from fastbn.engine.native import engine as native
from fastbn.engine.native.algorithms import RAW

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
TOLERANCE = 2e-6  # of one convolution, norm-wise against float64
HALF = 2.0**-8  # the one rounding of what is stored as bfloat16


class Unpacked(native.Native):
    """An engine that takes one algorithm, F(M×M, 3×3) or 0, by the weight as the model holds it."""

    def __init__(self, M, order=torch.contiguous_format):
        super().__init__()
        self.M, self.order = M, order

    def pack(self, conv, weight, dtype, gradients=None, size=None, by=None):
        weight = weight.contiguous(memory_format=self.order)
        packed = weight_layout.pack(conv, weight, RAW - 2 * self.M, self.lanes)
        assert weight.dtype != torch.float32 or packed.forward.data_ptr() == weight.data_ptr()
        return packed


CASES = [
    Case("K in uneven chunks, parts of the output channels", 3, 4, 4, 272, 80),
    Case("tiles beyond both edges, channels that fill no vector", 3, 7, 9, 40, 72),
    Case("bands of rows, an uneven last one", 2, 30, 31, 33, 35),
    Case("several places of whole images, an uneven last one", 37, 5, 4, 24, 24),
    Case("an image of one tile", 5, 2, 2, 40, 72),
    Case("an image of less than a tile", 3, 1, 2, 24, 40),
    Case("channels that fill no vector at all", 2, 6, 5, 3, 5),
]


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("M", [2, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.why)
def test_odd_shapes(case, M, order):
    check(forward_errors(Unpacked(M, order), case, "residual", torch.float32, TOLERANCE))
    check(gradient_errors(Unpacked(M, order), case, "saved", torch.float32, TOLERANCE))


@pytest.mark.parametrize("case", [CASES[0], CASES[4]], ids=lambda case: case.why)
def test_bfloat16(case):
    check(forward_errors(Unpacked(2), case, "projection", torch.bfloat16, HALF))
    check(gradient_errors(Unpacked(2), case, "again", torch.bfloat16, HALF))


@pytest.mark.parametrize("M", [2, 4])
def test_the_same_bits_at_any_number_of_threads(M):
    engine, conv = Unpacked(M), CASES[0].conv()
    packed = engine.pack(conv, draw(*conv.weight_shape, seed=2), torch.float32)
    x, before = activation(3, 272, 4, 4, seed=1), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        wanted = target(80)
        y = engine.convolve(conv, packed, x, False, False, wanted)[0]
        path = BackpropPath(conv, packed, y, y, (y[0, :, 0, 0].contiguous(), None, None))
        found.append((y, wanted.norm.vectors, engine.gradient([path], [], None, tuple(x.shape))[0]))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_paths_of_several_algorithms():
    """Tiles of 4, of 2 and none, by weights as they are: the places and buffers are shared."""
    size, paths, expected = (3, 24, 5, 7), [], 0
    for seed, M, kernel in ((1, 4, 3), (2, 2, 3), (3, 0, 1)):
        conv = Case("", 3, 5, 7, 24, 40, kernel=kernel, padding=kernel // 2).conv()
        weight, dy = draw(40, 24, kernel, kernel, seed=seed), activation(3, 40, 5, 7, seed=10 + seed)
        packed = Unpacked(M).pack(conv, weight, torch.float32)
        paths.append(BackpropPath(conv, packed, dy, dy, (torch.ones(40), None, None)))
        expected += torch.nn.grad.conv2d_input(size, weight.double(), dy.double(), padding=kernel // 2)
    found, _ = Unpacked(0).gradient(paths, [], None, size)
    assert relative(found, expected) < TOLERANCE
