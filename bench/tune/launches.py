"""Whether a GPU's kernels begin before the one before them has ended (kernels/triton/early_launch.py), and
packed arithmetic (kernels/triton/prologue.py), by a deep network's step.

Kernels begin early where that is faster and each of the step's bits is the same; fp16 is formed in fp16 where
that is faster and was asked for, since it costs precision."""

from __future__ import annotations

import copy
import functools
import statistics
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.gpu.measure import CAPABILITY, DEVICE, begun_early, device_seconds, relative, repeated
from bench.gpu.networks import autocast, network
from fastbn import fuse
from fastbn.engine.triton import tuning

# whether kernels begin early, and packed arithmetic
WAYS = {"ordinary": (False, False), "early": (True, False), "packed": (False, True)}


def row(images: int, rounds: int, packed: bool, depth: int = 110, size: int = 32) -> dict[str, Any]:
    """A network's forward and backward in float16, each way as one graph: what they take, by how much the
    results differ from the ordinary way's, and what follows from that."""
    model, calls = network(depth, "cifar"), {}
    x, dz = torch.randn(images, 3, size, size, device=DEVICE), torch.randn(images, 10, device=DEVICE)

    def step(fused: nn.Module, early: bool, packed: bool) -> list[Tensor]:
        with begun_early(early), mock.patch.object(tuning, "packed", lambda device: packed):
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
        off = max(
            off, relative(*(torch.cat([t.double().flatten() for t in found]) for found in (halved, ordinary)))
        )
    middle = {way: round(1e6 * statistics.median(own), 2) for way, own in seconds.items()}
    print(
        f"a step, depth {depth}, in µs: {middle}; early: {differ} elements differ; packed: off by {off:.1e}"
    )
    return {
        "capability": CAPABILITY,
        "dependent": differ == 0 and middle["early"] < middle["ordinary"], "packed": packed and middle["packed"] < middle["ordinary"],
        "depth": depth, "microseconds": middle, "elements_that_differ_early": differ, "relative_difference_packed": off,
    }  # fmt: skip
