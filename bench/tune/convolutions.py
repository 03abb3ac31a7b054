"""The table of which kernel runs a convolution on a GPU, and how the one tap by tap is cut, measured by layer
in float16: rolling rows where they can, tap by tap in several cuts, and the library's with BatchNorm in
passes beside it.

A layer's forward reads what scale, shift and ReLU make of a raw output, and keeps nothing of it; its gradient
is masked by that ReLU. Both end their BatchNorms, since how a kernel is cut is what there is to merge. What
is fastest in both together runs it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch

from bench.audit.launches import NETWORKS
from bench.gpu.layer import Layer
from bench.gpu.measure import CAPABILITY, DEVICE
from bench.oracle import operations
from bench.suite.clock import Call
from bench.tune.compete import TOLERANCE, called, compete
from fastbn import FastBNOnlyResNet
from fastbn.engine.triton import tuning, tuning_table
from fastbn.engine.triton.engine import Triton
from fastbn.engine.triton.tuning import LIBRARY, ROLLING, TAPS
from fastbn.engine.triton.tuning_table import Way, shipped
from fastbn.kernels.triton.conv import Tile
from fastbn.machine.devices import free_unused
from fastbn.planning.step_memory import NetworkMemory

Candidate = tuple[str, Tile]  # an algorithm, and a cut, which tap by tap alone reads
PASSES = ("forward", "backward")


def layers() -> list[tuning_table.TunedLayer]:
    """Return the layers of the networks that the project is measured by."""
    found: dict[tuning_table.TunedLayer, None] = {}
    for family, sizes in NETWORKS.items():
        for depth, size in sizes:
            model = FastBNOnlyResNet(depth, family=family, engine="stock")
            for region, shapes in NetworkMemory(model, Triton(CAPABILITY)).shapes((1, 3, size, size)):
                own = [tuning.layer(conv, shapes[conv.source][2:], CAPABILITY) for conv in region.convs]
                found |= {layer: None for layer in own if layer is not None}
    return list(found)


def case(layer: tuning_table.TunedLayer, images: int) -> operations.Case:
    size, channels = (layer.size, layer.size), (layer.in_channels, layer.channels)
    return operations.Case("", images, *size, *channels, layer.kernel, layer.stride, layer.kernel // 2)


def candidates(layer: tuning_table.TunedLayer, way: str) -> list[Candidate]:
    """Return the candidates, the rule's own cut tap by tap first."""
    read, written = layer.in_channels, layer.channels
    if way == "backward":
        read, written = written, read
    rule = tuning.cut(read, written, torch.float16, CAPABILITY)
    found = [(TAPS, tile) for tile in tiles(rule, written)]
    rolling = [(ROLLING, rule)] if tuning.usual(case(layer, 1).conv()) == ROLLING else []
    return [*found, *rolling, (LIBRARY, rule)]


def tiles(rule: Tile, written: int) -> list[Tile]:
    """Return cuts, the rule's first; twice the warps; more channels, so that fewer programs form what they
    read; more and fewer pixels."""
    m, n = rule.block_m, rule.block_n
    others = [(m, n, 8), (m, 2 * n, 4), (m, 2 * n, 8), (m, 4 * n, 8), (2 * m, n, 8), (m // 2, n, 4)]
    cuts = (dataclasses.replace(rule, block_m=m, block_n=n, warps=warps) for m, n, warps in others)
    return [rule, *(cut for cut in cuts if cut.block_n < 2 * written)]


def compiled(layer: tuning_table.TunedLayer, images: int) -> None:
    """Compile every candidate once."""
    for way in _passes(layer):
        called(candidates(layer, way), _Make(layer, way, images))


def row(layer: tuning_table.TunedLayer, images: int, rounds: int) -> dict[str, Any]:
    """Return the fastest algorithm for a layer, its cuts, and what every candidate took."""
    middle: dict[str, dict[Candidate, float]] = {}
    left_out = []
    for way in _passes(layer):
        own = candidates(layer, way), _Make(layer, way, images)
        middle[way], without = compete(*own, TOLERANCE[torch.float16], rounds)
        left_out += [{"pass": way, **_plain(candidate), "why": why} for candidate, why in without.items()]
        free_unused(DEVICE)
    best = {name: [_best(name, own) for own in middle.values()] for name in (TAPS, ROLLING, LIBRARY)}
    took = {name: us for name, own in best.items() if (us := sum(each for each, _ in own)) < math.inf}
    fastest = min(took, key=lambda name: took[name])
    each = ", ".join(f"{name} {us:.1f} µs" for name, us in took.items())
    print(f"{layer}: {fastest} of {each}", flush=True)
    cuts = dict(zip(_passes(layer), (cut for _, cut in best[TAPS]), strict=True))
    ways = {way: dataclasses.asdict(cuts.get(way) or candidates(layer, way)[0][1]) for way in PASSES}
    measured = [
        {"pass": way, **_plain(one), "microseconds": round(us, 2)}
        for way, own in middle.items()
        for one, us in own.items()
    ]
    found = {**dataclasses.asdict(layer), "algorithm": fastest, **ways}
    return {**found, "measured": measured, "left_out": left_out}


def _best(name: str, middle: dict[Candidate, float]) -> tuple[float, Tile | None]:
    """Return the least microseconds of an algorithm in a pass, and with which cut; infinitely many where it
    has none."""
    own = [(us, cut) for (algorithm, cut), us in middle.items() if algorithm == name]
    return min(own, key=lambda each: each[0], default=(math.inf, None))


def _plain(candidate: Candidate) -> dict[str, Any]:
    algorithm, cut = candidate
    return {"algorithm": algorithm, **(dataclasses.asdict(cut) if algorithm == TAPS else {})}


def _passes(layer: tuning_table.TunedLayer) -> tuple[str, ...]:
    """Return a layer's passes: no gradient of the images themselves is wanted."""
    return PASSES if layer.in_channels % 8 == 0 else PASSES[:1]


class _Make:
    """The maker of a candidate's call."""

    def __init__(self, layer: tuning_table.TunedLayer, way: str, images: int):
        self._layer, self._way = layer, way
        self._own = Layer(case(layer, images), torch.float16)

    def __call__(self, candidate: Candidate) -> Call:
        algorithm, cut = candidate
        measured = dataclasses.replace(shipped(), ways={self._layer: Way(algorithm, cut, cut)})
        return self._own.call(Triton(CAPABILITY, algorithm, measured), self._way == "backward")
