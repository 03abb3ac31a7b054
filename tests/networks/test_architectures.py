"""Networks as their own libraries build them: fused equals stock, nearly all of it runs fused, and fuse says
nothing that is not true. `.ci/networks` makes the environment with torchvision and timm."""

from __future__ import annotations

import pytest

from bench.architectures.catalogue import ARCHITECTURES, Architecture
from bench.architectures.check import compare, coverage

pytestmark = pytest.mark.networks
EXACT = 1e-9  # in float64: far above rounding, far below any mistake in a formula
SIZE = 64  # of the images; of those made for larger ones 96
# Where rounding flips a ReLU, an output on its other side changes the gradients by as much in stock. Most of
# all where a BatchNorm has the few values of a 1×1 image: Inception v3's here, which the reference engine in
# float32, PyTorch's own operations in another order, changes by 0.03 to 0.08. Outputs have no such edges.
FLIPS = 0.25


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.key)
def test_fused_is_what_the_library_wrote(architecture: Architecture) -> None:
    found = coverage(architecture)
    assert found.multiplications is not None
    fused, every = found.multiplications
    assert fused >= 0.95 * every, str(found)

    agreement = compare(architecture, SIZE if architecture.size <= 224 else 96)
    assert agreement.gradients < EXACT and agreement.outputs < EXACT and agreement.buffers < EXACT
    assert agreement.gradients_float32 < max(10 * agreement.stock_float32, FLIPS)
    assert agreement.outputs_float32 < max(10 * agreement.stock_outputs_float32, 1e-4)
    assert not agreement.warnings
