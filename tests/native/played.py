"""Networks that are played, beside the same walked."""

from __future__ import annotations

import copy

import torch
from nets import resnet

from bench.oracle.networks import images
from bench.oracle.stock import upstream
from fastbn import fuse
from fastbn.engine.executor import Eager
from fastbn.engine.region import FusedRegion

NETS = {
    "basic": lambda: resnet(14, 16),
    "odd channels": lambda: resnet(8, 12),
    "ImageNet's, a region before the pooling": lambda: resnet(18, 8, "imagenet"),
    "bottlenecks": lambda: resnet(50, 4, "imagenet"),
}


def regions(model):
    return [
        m
        for _, program in model.forward._programs.values()
        for m in program.children()
        if isinstance(m, FusedRegion)
    ]


def pair(model, batch=2):
    """Return the model fused twice, the second always walked. Only for the modes that it is in."""
    ours, theirs = (fuse(copy.deepcopy(model).float(), "native") for _ in "ab")
    theirs(images(batch, 17, 15, dtype=torch.float32))
    theirs.load_state_dict(model.state_dict())
    for region in regions(theirs):
        region.executor = Eager()
    return ours, theirs


def programs(model):
    return [program for region in regions(model) for program, _ in region.executor._programs.values()]


def step(model, x, **keywords):
    """Return the output, all gradients and buffers of a step with a random upstream gradient."""
    model.zero_grad()
    z = model(x)
    z.backward(upstream([z])[0], **keywords)
    made = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return [
        z.detach().clone(),
        *made,
        *(b.clone() for b in model.buffers()),
        *([] if x.grad is None else [x.grad.clone()]),
    ]


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
