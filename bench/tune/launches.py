"""Early launches: whether a GPU's kernels begin before the one before them has ended
(kernels/triton/early_launch.py), by a deep network's step: where that is faster and each of the step's bits
is the same."""

from __future__ import annotations

import copy
import functools
import statistics
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.measure import CAPABILITY, DEVICE, engine
from bench.gpu.networks import network
from bench.suite.clock import captured, device_seconds, interleaved
from bench.suite.steps import arithmetic
from fastbn import fuse

WAYS = {"ordinary": False, "early": True}  # whether kernels begin early


def row(images: int, rounds: int, depth: int = 110, size: int = 32) -> dict[str, Any]:
    """Return the row of a network's forward and backward in float16, each way as one graph: what they take,
    by how much the results differ from the ordinary way's, and what follows from that."""
    model, calls = network(depth, "cifar"), {}
    x, dz = torch.randn(images, 3, size, size, device=DEVICE), torch.randn(images, 10, device=DEVICE)

    def step(fused: nn.Module) -> list[Tensor]:
        with arithmetic("amp-fp16", DEVICE):
            z = fused(x)
        trained = [p for p in fused.parameters() if p.requires_grad]
        return [z.detach(), *torch.autograd.grad(z, trained, dz.to(z)), *fused.buffers()]

    for way, early in WAYS.items():
        own = functools.partial(step, fuse(copy.deepcopy(model), engine(early)))
        calls[way] = captured(own, DEVICE)
    seconds = interleaved(calls, rounds, DEVICE, clock=device_seconds)
    differ = 0
    for _ in range(rounds):
        ordinary, begun = (call() for call in calls.values())
        differ += sum(int((a != b).sum()) for a, b in zip(ordinary, begun, strict=True))
    middle = {way: round(1e6 * statistics.median(own), 2) for way, own in seconds.items()}
    print(f"a step, depth {depth}, in µs: {middle}; early: {differ} elements differ")
    better = differ == 0 and middle["early"] < middle["ordinary"]
    found = {"capability": CAPABILITY, "dependent": better, "depth": depth, "microseconds": middle}
    return found | {"elements_that_differ_early": differ}
