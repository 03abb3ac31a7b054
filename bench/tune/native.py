"""The native engine's table: a CPU's convolution algorithms, measured by number of channels and size of
image.

For each shape it takes the fastest, forward and input gradient together, whose error against float64 stays
within 1.5e-6: of packed weights, and of weights as they are. The file holds a table by instruction set; that
of the kernels built here is replaced, the others stay."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.nn.functional as F

from bench.gpu.layer import Layer
from bench.oracle.errors import relative
from bench.oracle.operations import Case
from bench.oracle.operations import channels as channelwise
from bench.records.conditions import conditions
from bench.suite.clock import Call, interleaved, processor_seconds
from fastbn.engine.native import algorithms
from fastbn.engine.native.algorithms import NAMES, RAW, WINOGRAD
from fastbn.engine.native.engine import Native

SHAPES = (  # channels and height, as networks have them
    *((8, 32), (16, 32), (24, 32), (32, 16), (32, 32), (64, 8), (64, 16), (64, 32), (64, 56)),
    *((128, 8), (128, 16), (128, 28), (256, 4), (256, 8), (256, 14), (512, 2), (512, 4), (512, 7)),
)
ERROR = 1.5e-6  # a layer of other numbers may be off by more
VALUES = 1 << 19  # of an activation: fewer images than asked for where they are large, but 8
LEAST = 8
CPU = torch.device("cpu")
CHECKED = 2  # images whose error is measured


def operations(M: int, channels: int, size: int, images: int) -> tuple[Call, float]:
    """Return the forward and the input gradient by one algorithm as a call, and the forward's error against
    float64."""
    engine, case = Native(), Case("", images, size, size, channels, channels)
    layer = Layer(case, torch.float32, "cpu")
    packed = engine.pack(case.conv(), layer.weight, torch.float32, by=NAMES[M])
    forward, gradient = (layer.call(engine, way, packed=packed) for way in (False, True))
    z = layer.y[:CHECKED].double() * channelwise(layer.norm.scale) + channelwise(layer.norm.shift)
    expected = F.conv2d(z.relu(), layer.weight.double(), padding=1)

    def both() -> None:
        forward()
        gradient()

    return both, relative(forward()[:CHECKED], expected)


def measure(images: int, rounds: int) -> list[dict[str, Any]]:
    """Return a row per shape: milliseconds and error of each algorithm, taken in turn, and the choice.

    Milliseconds are the least of the one thread's processor time: what else runs hardly moves it."""
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for channels, size in SHAPES:
        here = min(images, max(LEAST, VALUES // (channels * size * size)))
        ready, errors = {}, {}
        for M in NAMES:
            ready[M], errors[M] = operations(M, channels, size, here)
        times = interleaved(ready, rounds, CPU, clock=processor_seconds)
        row = {M: {"ms": round(1e3 * min(times[M]), 3), "error": float(f"{errors[M]:.1e}")} for M in ready}
        good = sorted((M for M in row if row[M]["error"] <= ERROR), key=lambda M: row[M]["ms"])
        packed, unpacked = (next(M for M in good if (M in WINOGRAD) is kind) for kind in (True, False))
        shape = {"channels": channels, "size": size, "images": here}
        shape |= {"M": packed, "unpacked": (RAW - unpacked) // 2, "pack": good.index(packed) == 0}
        rows.append(shape | {"measured": {NAMES[M]: row[M] for M in row}})
        print(f"{channels:4} channels {size:2}×{size:<2}: {row}: {NAMES[good[0]]}", flush=True)
    torch.set_num_threads(before)
    return rows


def tune(images: int, rounds: int) -> dict[str, Any]:
    """Return what algorithms.json holds, the table of this build's instruction set measured anew."""
    tables: dict[str, Any] = json.loads(algorithms.TABLE.read_text(encoding="utf-8"))
    own = {"threads": 1, **conditions(CPU), "rows": measure(images, rounds)}
    return {**tables, Native().instructions: own}
