"""The Triton engine's table: how the rolling kernels are cut on a GPU, measured by shape, pass and width of storage; and, measured
by a deep network's step, whether kernels begin before the one before them has ended (kernels/dependent.py), and packed arithmetic.

The rule's own choice (engine/configurations.py) against a few others a shape: bands of the other height, twice the warps, and bands of
one row where an image has few. A candidate that does not compile, or whose result differs from the rule's by more than rounding, is left
out and said so. Kernels begin early where that is faster and each of the step's bits is the same; fp16 is formed in fp16
(kernels/source.py) where that is faster and was asked for, since it costs precision.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.gpu.measure import DEVICE, begun_early, device_seconds, failure, relative, repeated, synchronize
from bench.gpu.networks import autocast, network
from bench.gpu.trial import Layer
from bench.record import conditions
from fastbn import fuse
from fastbn.engine import configurations
from fastbn.engine.configurations import ROLLING, Choice, Key

SHAPES = ((16, 32), (32, 16), (64, 8), (64, 56))  # channels, size
WAYS = {"ordinary": (False, False), "early": (True, False), "packed": (False, True)}  # whether kernels begin early, and packed arithmetic
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # between two orders of the same sums


def candidates(key: Key) -> list[Choice]:
    """The rule's own first."""
    choice = configurations.rule(key)
    bands = [2 if choice.rows == 4 else 4, *([1] if key.channels == 64 else [])]
    others = [dataclasses.replace(choice, rows=rows) for rows in bands]
    return [choice, *others, dataclasses.replace(choice, warps=2 * choice.warps if choice.warps < 8 else 4)]


def tune(images: int, rounds: int, shapes: tuple[tuple[int, int], ...] = SHAPES, packed: bool = False) -> dict[str, Any]:
    """What configurations.json holds: the rows of other devices that it held before, and this one's."""
    here = configurations.capability(DEVICE)
    rows = [row for row in configurations.read() if row["capability"] != here]
    for channels, size in shapes:
        for backward, dtype in ((False, torch.float16), (False, torch.float32), (True, torch.float16), (True, torch.float32)):
            rows.append(_row(Key(here, backward, channels, size, dtype == torch.float32), dtype, images, rounds))
    launches = [row for row in configurations.read("launches") if row["capability"] != here]
    if here:
        launches.append({"capability": here, **launched(images, rounds, packed)})
    return {**conditions(DEVICE), "images": images, "launches": launches, "rows": rows}


def launched(images: int, rounds: int, packed: bool, depth: int = 110, size: int = 32) -> dict[str, Any]:
    """A network's forward and backward in float16, each way as one graph: what they take, by how much the results differ from the ordinary
    way's, and what follows from that."""
    model, calls = network(depth, "cifar"), {}
    x, dz = torch.randn(images, 3, size, size, device=DEVICE), torch.randn(images, 10, device=DEVICE)

    def step(fused: nn.Module, early: bool, packed: bool) -> list[Tensor]:
        with begun_early(early), mock.patch.object(configurations, "packed", lambda device: packed):
            with autocast(torch.float16):
                z = fused(x)
            trained = [p for p in fused.parameters() if p.requires_grad]
            return [z.detach(), *torch.autograd.grad(z, trained, dz.to(z)), *fused.buffers()]

    for way, (early, halved) in WAYS.items():
        own = functools.partial(step, fuse(copy.deepcopy(model), "triton"), early, halved)
        calls[way] = repeated([own], True)
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    differ, off = 0, 0.0
    for _ in range(rounds):
        for way, call in calls.items():
            seconds[way].append(device_seconds(call))
        (ordinary,), (early,), (halved,) = (call() for call in calls.values())
        differ += sum(int((a != b).sum()) for a, b in zip(ordinary, early, strict=True))
        off = max(off, relative(*(torch.cat([t.double().flatten() for t in found]) for found in (halved, ordinary))))
    middle = {way: round(1e6 * statistics.median(own), 2) for way, own in seconds.items()}
    print(f"a step, depth {depth}, in µs: {middle}; early: {differ} elements differ; packed: off by {off:.1e}")
    return {
        "dependent": differ == 0 and middle["early"] < middle["ordinary"], "packed": packed and middle["packed"] < middle["ordinary"],
        "depth": depth, "microseconds": middle, "elements_that_differ_early": differ, "relative_difference_packed": off,
    }  # fmt: skip


def _row(key: Key, dtype: torch.dtype, images: int, rounds: int) -> dict[str, Any]:
    """The fastest choice for a shape, and what every candidate took."""
    layer = Layer(key.channels, key.size, images, dtype)
    tensors = layer.tensors(0)
    calls, expected, left_out = {}, None, []
    for choice in candidates(key):
        with mock.patch.object(configurations, "table", lambda choice=choice: {key: choice}):
            call = (layer.fused_gradient if key.backward else layer.fused_forward)(ROLLING, tensors)
            try:
                found = call().clone()
                synchronize()
            except Exception as error:  # the compiler's own, shared memory's, the device's
                left_out.append({**dataclasses.asdict(choice), "why": failure(error)})
                continue
        expected = found if expected is None else expected
        if relative(found, expected) > TOLERANCE[dtype]:
            left_out.append({**dataclasses.asdict(choice), "why": f"differs from the rule's by {relative(found, expected):.1e}"})
        else:
            calls[choice] = call
    times: dict[Choice, list[float]] = {choice: [] for choice in calls}
    for _ in range(rounds):
        for choice, call in calls.items():
            with mock.patch.object(configurations, "table", lambda choice=choice: {key: choice}):
                times[choice].append(device_seconds(call))
    middle = {choice: 1e6 * statistics.median(seconds) for choice, seconds in times.items()}
    best = min(middle, key=lambda choice: middle[choice])
    measured = [{**dataclasses.asdict(choice), "microseconds": round(us, 2)} for choice, us in middle.items()]
    print(f"{key}: {best}, {middle[best]:.1f} µs of {', '.join(f'{us:.1f}' for us in middle.values())}")
    return {**dataclasses.asdict(key), **dataclasses.asdict(best), "measured": measured, "left_out": left_out}
