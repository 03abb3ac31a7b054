"""The footprint that is counted without a byte of it, against the bytes of real forwards and backwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from counted import Counted
from nets import resnet

from bench.oracle.networks import images
from fastbn.engine.context import recomputing
from fastbn.engine.program.build import read
from fastbn.engine.recomputation import Recompute, spans
from fastbn.engine.select import choose
from fastbn.planning.region_memory import footprint

CPU = torch.device("cpu")
CASES = {
    "cifar 14": (14, 16, None, (16, 32, 32)),
    "imagenet 18": (18, 16, "imagenet", (8, 64, 64)),
    "imagenet 50, ragged": (50, 8, "imagenet", (8, 61, 67)),
}
WITHIN = 0.05  # what is left out: vectors, sums, a library's own workspace


def close(found: int, expected: int) -> bool:
    return abs(found - expected) <= WITHIN * expected


@pytest.mark.parametrize("policy", [None, Recompute(1), Recompute(3_000_000, 5_000_000)], ids=str)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "imagenet" in name else ()) for name in CASES]
)
def test_predicted_against_counted(name, engine, grad, policy):
    depth, width, family, size = CASES[name]
    own, _ = choose(engine, CPU, torch.float32)
    _, program = read(resnet(depth, width, family).float(), {}, own, {})
    regions = [module for module_name, module in program.named_children() if module_name.startswith("region")]
    region = regions[-1]  # ImageNet's stem is a region by itself, before the max pooling
    x = images(*size, region.region.convs[0].in_channels, dtype=torch.float32, grad=grad).contiguous(
        memory_format=torch.channels_last
    )
    x = x.detach().requires_grad_(grad)
    with recomputing(policy):
        region(x)  # packs the weights, and writes the program down
    shapes = region.region.shapes((tuple(x.shape),))
    again = () if policy is None else spans(region.region, shapes, 4, policy)
    assert policy is None or again
    expected = footprint(
        region.region, region.pairs, own, (tuple(x.shape),), (grad,), (torch.float32, torch.float32), again
    )
    with Counted() as counted, recomputing(policy):
        outputs = region(x)
        assert close(counted.peak, expected.forward)
        own_bytes = sum(z.nbytes for z in outputs)
        assert close(counted.live, expected.saved + own_bytes) and own_bytes == expected.outputs
        counted.peak = counted.live
        torch.autograd.backward(outputs, [torch.ones_like(z) for z in outputs])
        assert close(counted.peak - own_bytes, expected.backward)


def test_evaluation_saves_nothing():
    own, _ = choose("native", CPU, torch.float32)
    model = resnet(14, 16).float()
    _, program = read(model, {}, own, {})
    region: Any = program.region0
    x = images(16, 32, 32, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    for p in model.parameters():
        p.requires_grad_(False)
    region(x)
    expected = footprint(
        region.region, region.pairs, own, (tuple(x.shape),), (False,), (torch.float32, torch.float32)
    )
    with Counted() as counted:
        outputs = region(x)
        assert close(counted.peak, expected.forward)
        assert counted.live - sum(z.nbytes for z in outputs) < 0.01 * expected.forward
    assert (expected.saved, expected.backward) == (0, 0)
