"""The memory that packed weights take on a CPU is weighed against the activations of a batch."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from nets import resnet

from bench.oracle.networks import flip_free, images
from bench.oracle.stock import error, flat_gradient, run, stock
from fastbn import FastBNOnlyResNet, explain, fuse
from fastbn.engine import select
from fastbn.engine.native import algorithms, build
from fastbn.engine.native.algorithms import FEW_BYTES, NAMES, RAW, ROOM
from fastbn.planning.step_memory import NetworkMemory

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
FP32 = (torch.float32, torch.float32)


@functools.cache
def network(depth: int, width: int, family: str = "imagenet") -> NetworkMemory:
    return NetworkMemory(
        FastBNOnlyResNet(depth, width=width, family=family, engine="stock"), select._native(False)
    )


@pytest.mark.parametrize("batch", [1, 8, 16, 128])
@pytest.mark.parametrize("depth, width, size", [(18, 64, 64), (50, 16, 32), (18, 16, 224), (18, 64, 224)])
def test_copies_of_weights_stay_within_their_share(depth, width, size, batch):
    own = network(depth, width)
    x = (batch, 3, size, size)
    weights = sum(4 * math.prod(c.weight_shape) for region, _ in own.shapes(x) for c in region.convs)
    outputs = sum(
        4 * c.channels * shapes[c.source][0] * _pixels(c, shapes)
        for region, shapes in own.shapes(x)
        for c in region.convs
    )
    outputs *= max(1, 8 / batch)
    share = min(0.4 * weights + 1.2 * outputs, max(0.9 * outputs, FEW_BYTES))
    assert own.packed_bytes(x, FP32) <= max(share, ROOM)


def _pixels(conv, shapes) -> int:
    _, _, height, width = conv.shape(shapes[conv.source])
    return height * width


def test_a_batch_large_enough_has_its_transforms():
    """ResNet-18 on 64² images: at batch 16 the last stages' weights are transformed at every step, or stay as
    they are; at 512 every weight is packed that is faster so."""
    own = network(18, 64)
    found = {
        batch: own.engine.choices(region.convs, shapes)
        for batch in (16, 512)
        for region, shapes in own.shapes((batch, 3, 64, 64))
    }
    assert NAMES[RAW] in found[16] and NAMES[RAW] not in found[512]
    assert NAMES[RAW - 8] in found[16]


def test_explain_says_what_was_traded():
    model = FastBNOnlyResNet(18, width=32, family="imagenet", engine="native")
    small, large = (str(explain(model, (3, 32, 32), batch)) for batch in (8, 512))
    assert "weights not packed: at this batch" in small and "not packed" not in large


def test_gradients_by_weights_as_they_are(monkeypatch):
    monkeypatch.setattr(algorithms, "ROOM", 0)
    model = fuse(flip_free(resnet(18, 32, "imagenet")).float(), "native")
    x = images(3, 33, 31, dtype=torch.float32)
    model.eval()
    assert NAMES[RAW] in explain(model, (3, 33, 31), 3).algorithms
    found, expected = run(model, x), run(stock(model).double(), x.double())
    assert error(flat_gradient(found), flat_gradient(expected)) < 1e-4


def test_a_weight_changed_in_place_is_seen(monkeypatch):
    """An alias of it needs no packing anew, a copy does: both give the new outputs."""
    monkeypatch.setattr(algorithms, "ROOM", 0)
    model = fuse(resnet(18, 16, "imagenet").float().eval(), "native")
    x = images(2, 32, 32, dtype=torch.float32)
    with torch.no_grad():
        model(x)
        for p in model.parameters():
            if p.dim() == 4:
                p.mul_(1.5)
        assert error(model(x), stock(model).double()(x.double())) < 1e-4


@pytest.mark.parametrize("instructions", ["avx512", "avx2", "neon", "unheard of"])
def test_every_instruction_set_has_rows(instructions):
    rows = algorithms.table(instructions)
    assert {M for row in rows for M in (row.M, row.unpacked)} <= {0, 2, 4}
    assert len({(row.channels, row.size) for row in rows}) == len(rows)


def test_the_nearest_measured_shape_decides():
    rows = [
        algorithms.AlgorithmRow(32, 16, 4, 4, True),
        algorithms.AlgorithmRow(32, 64, 2, 2, True),
        algorithms.AlgorithmRow(64, 8, 0, 2, False),
    ]
    found = [
        algorithms._nearest(rows, c, size)
        for c, size in ((40, (16, 16)), (33, (60, 50)), (500, (7, 7)), (1, None))
    ]
    assert found == [rows[0], rows[1], rows[2], rows[1]]


def test_the_built_library_says_its_instructions():
    engine = select._native(False)
    assert engine.instructions == {16: "avx512", 8: "avx2"}.get(engine.lanes, engine.instructions)
