"""The Triton engine's table: how the rolling kernels are cut on a GPU, measured by shape, pass and width of storage.

The rule's own choice (engine/configurations.py) against at most two others a shape: bands of the other height, and twice the warps.
A candidate that does not compile, or whose result differs from the rule's by more than rounding, is left out and said so.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any
from unittest import mock

import torch

from bench.gpu.measure import DEVICE, device_seconds, failure, relative, synchronize
from bench.gpu.trial import Layer
from bench.record import conditions
from fastbn.engine import configurations
from fastbn.engine.configurations import ROLLING, Choice, Key

SHAPES = ((16, 32), (32, 16), (64, 8), (64, 56))  # channels, size
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}  # between two orders of the same sums


def candidates(choice: Choice) -> list[Choice]:
    """The rule's own first."""
    other = dataclasses.replace(choice, rows=2 if choice.rows == 4 else 4)
    return [choice, other, dataclasses.replace(choice, warps=2 * choice.warps if choice.warps < 8 else 4)]


def tune(images: int, rounds: int, shapes: tuple[tuple[int, int], ...] = SHAPES) -> dict[str, Any]:
    """What configurations.json holds: the rows of other devices that it held before, and this one's."""
    here = configurations.capability(DEVICE)
    rows = [row for row in configurations.read() if row["capability"] != here]
    for channels, size in shapes:
        for backward, dtype in ((False, torch.float16), (False, torch.float32), (True, torch.float16), (True, torch.float32)):
            rows.append(_row(Key(here, backward, channels, size, dtype == torch.float32), dtype, images, rounds))
    return {**conditions(DEVICE), "images": images, "rows": rows}


def _row(key: Key, dtype: torch.dtype, images: int, rounds: int) -> dict[str, Any]:
    """The fastest choice for a shape, and what every candidate took."""
    layer = Layer(key.channels, key.size, images, dtype)
    tensors = layer.tensors(0)
    calls, expected, left_out = {}, None, []
    for choice in candidates(configurations.rule(key)):
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
