"""The native engine's table: a CPU's convolution algorithms, measured by number of channels.

For each number of channels it takes the fastest, forward and input gradient together, whose error against
float64 stays within 2e-6."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fastbn import devices
from fastbn.engine.interface import BackpropPath, LazyActivation, Mask, NormTarget, NormVectors
from fastbn.engine.native import algorithms
from fastbn.engine.native.engine import Native
from fastbn.graph.activations import RELU
from fastbn.graph.regions import Conv

# channels -> the size at which networks have them
CHANNELS = {8: 32, 16: 32, 24: 32, 32: 16, 64: 8, 128: 14, 256: 14, 512: 7}
ERROR = 2e-6


def operations(M: int, channels: int, size: int, images: int) -> tuple[list[Callable[[], Any]], float]:
    """The forward and the input gradient by one algorithm, and the forward's error against float64."""
    torch.manual_seed(0)
    conv = Conv("conv", "norm", 0, channels, channels, (3, 3), (1, 1), (1, 1), (1, 1), 1, 0)
    engine = Native(exact=M == 0)
    weight = torch.randn(channels, channels, 3, 3) / channels**0.5
    packed = engine.pack(conv, weight, torch.float32)
    y, norm = (
        torch.randn(images, size, size, channels).permute(0, 3, 1, 2),
        NormVectors(torch.randn(4, channels), True),
    )
    source = LazyActivation((y,), (norm,), None, RELU)
    path = BackpropPath(conv, packed, y, y, (norm.scale, norm.shift, norm.mean))
    z = torch.relu(y.double() * norm.scale.double().view(1, -1, 1, 1) + norm.shift.double().view(1, -1, 1, 1))
    target = NormTarget(torch.nn.BatchNorm2d(channels), None, NormVectors(torch.empty(4, channels), True))
    found, expected = (
        engine.convolve(conv, packed, source, False, False, target)[0],
        F.conv2d(z, weight.double(), padding=1),
    )
    mask = Mask(RELU, None, (y,), (norm,), (torch.empty(2, channels),))
    shape = (images, channels, size, size)
    calls: list[Callable[[], Any]] = [
        lambda: engine.convolve(conv, packed, source, False, False, target),
        lambda: engine.gradient([path], [], mask, shape),
    ]
    return calls, ((found.double() - expected).norm() / expected.norm()).item()


def measure(images: int, rounds: int) -> list[dict[str, Any]]:
    """One row a number of channels: milliseconds and error of each algorithm, taken in turn, and the
    choice."""
    rows = []
    shipped = algorithms.table
    for channels, size in CHANNELS.items():
        ready, found = {}, {}
        for M in algorithms.NAMES:
            algorithms.table = lambda M=M: (algorithms.AlgorithmRow(0, M),)  # type: ignore[misc]
            ready[M], found[M] = operations(M, channels, size, images)
        times: dict[int, list[float]] = {M: [] for M in ready}
        for _ in range(rounds):
            for M, calls in ready.items():
                start = time.perf_counter()
                for call in calls:
                    call()
                times[M].append(1e3 * (time.perf_counter() - start))
        row = {
            M: {"ms": round(statistics.median(times[M]), 3), "error": float(f"{found[M]:.1e}")} for M in ready
        }
        best = min((M for M in row if row[M]["error"] <= ERROR), key=lambda M: row[M]["ms"])
        rows.append(
            {
                "channels": channels,
                "M": best,
                "size": size,
                "measured": {algorithms.NAMES[M]: row[M] for M in row},
            }
        )
        print(f"{channels:4} channels {size:2}×{size:<2}: {row}: {algorithms.NAMES[best]}")
    algorithms.table = shipped
    return rows


def tune(images: int, rounds: int) -> dict[str, Any]:
    """What algorithms.json holds."""
    conditions = {
        "device": devices.describe(torch.device("cpu")),
        "versions": devices.versions(),
        "date": time.strftime("%Y-%m-%d"),
    }
    return {"images": images, **conditions, "rows": measure(images, rounds)}
