"""bench.tune by layer: a convolution takes what is fastest forward and backward together."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

if torch.cuda.is_available():
    pytest.skip(
        "it would measure this GPU for minutes; bench/gpu_check.sh is for that", allow_module_level=True
    )


from tune_table import TILE, Same, kept

from bench.oracle.operations import Case
from bench.tune import __main__ as command
from bench.tune import compete, convolutions
from fastbn.engine.triton import tuning
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS
from fastbn.engine.triton.tuning_table import TunedLayer, shipped

LAYERS = {
    TunedLayer(0, 16, 16, 3, 1, 3): [(TAPS, 2), (ROLLING, 1), (LIBRARY, 1)],
    TunedLayer(0, 16, 24, 1, 2, 3): [(TAPS, 2), (LIBRARY, 1)],
    TunedLayer(0, 3, 16, 3, 1, 3): [(TAPS, 2), (LIBRARY, 1)],
}


@pytest.mark.parametrize(
    "layer",
    [pytest.param(layer, marks=pytest.mark.slow if layer.kernel == 1 else ()) for layer in LAYERS],
    ids=str,
)
def test_a_layer_takes_what_is_fastest_forward_and_backward_together(layer, table, monkeypatch):
    """Every algorithm once in turn, the second cut of those tap by tap before the first; its kernels run for
    the first of them."""
    monkeypatch.setattr(
        convolutions, "tiles", lambda rule, written: [TILE, dataclasses.replace(TILE, warps=8)]
    )
    monkeypatch.setattr(convolutions, "layers", lambda: [layer])
    for fastest, _ in LAYERS[layer]:
        each = [
            2.0 - cut - (name == fastest) / 2 if name == TAPS else 1.25 - (name == fastest) / 2
            for name, cuts in LAYERS[layer]
            for cut in range(cuts)
        ]
        seconds = itertools.cycle(each)
        monkeypatch.setattr(compete, "device_seconds", lambda call, device, seconds=seconds: next(seconds))
        assert (
            command.main(["--engine", "triton", "--images", "1", "--rounds", "1", "--only", "convolutions"])
            == 0
        )
        monkeypatch.setattr(convolutions, "_Make", Same)
        (row,) = kept(table)["convolutions"]
        assert row["algorithm"] == fastest and not row["left_out"]
        assert len(row["measured"]) == len(each) * (2 if layer.in_channels == 16 else 1)
        conv, size = convolutions.case(layer, 2).conv(), (layer.size, layer.size)
        assert Triton().algorithm(conv, size) == fastest
        cuts = [tuning.tile(conv, size, torch.float16, 0, backward, shipped()) for backward in (False, True)]
        second = dataclasses.replace(TILE, warps=8)
        # nobody wants the images' gradient
        assert cuts == [second, second if layer.in_channels == 16 else TILE]


def test_the_layers_of_the_networks(monkeypatch):
    """ResNet-20's: the stem, three stages, two first convolutions and two projections."""
    monkeypatch.setattr(convolutions, "NETWORKS", {"cifar": ((20, 32),)})
    sizes = [(3, 16, 3, 1, 32), (16, 16, 3, 1, 32), (32, 32, 3, 1, 16), (64, 64, 3, 1, 8)]
    down = [(16, 32, 3, 2, 32), (16, 32, 1, 2, 32), (32, 64, 3, 2, 16), (32, 64, 1, 2, 16)]
    assert sorted(convolutions.layers(), key=str) == sorted(
        (TunedLayer(0, *layer) for layer in sizes + down), key=str
    )


def test_cuts_that_are_tried():
    """No more channels a program than are written, rounded up."""
    rule = tuning.cut(64, 256, torch.float16, 90)
    tried = {(cut.block_m, cut.block_n, cut.warps) for cut in convolutions.tiles(rule, 256)}
    assert tried == {
        (128, 64, 4),
        (128, 64, 8),
        (128, 128, 4),
        (128, 128, 8),
        (128, 256, 8),
        (256, 64, 8),
        (64, 64, 4),
    }
    assert {cut.block_n for cut in convolutions.tiles(rule, 64)} == {64}


def test_a_convolution_that_is_not_measured_goes_by_rule(table):
    row = {"algorithm": LIBRARY, "forward": dataclasses.asdict(TILE), "backward": dataclasses.asdict(TILE)}
    table(convolutions=[dataclasses.asdict(TunedLayer(90, 16, 16, 3, 1, 32)) | row])
    shape = {"n": 2, "h": 32, "w": 32, "c": 16, "oc": 16}
    same, spread = Case("", **shape).conv(), Case("", **shape, padding=2, dilation=2).conv()
    assert Triton(90).algorithm(same, (32, 32)) == LIBRARY
    assert (
        Triton(90).algorithm(same)
        == Triton(90).algorithm(same, (32, 16))
        == Triton(80).algorithm(same, (32, 32))
        == ROLLING
    )
    assert Triton(90).algorithm(spread, (32, 32)) == TAPS
    both = torch.float16, torch.float32
    tiles = [tuning.tile(same, (32, 32), dtype, 90, True, shipped()) for dtype in both]
    assert tiles == [TILE, tuning.cut(16, 16, torch.float32, 90)]
