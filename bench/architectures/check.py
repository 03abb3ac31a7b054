"""Whether a network's fused step is the network's own: against its stock path in float64, with random
upstream gradients."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import torch
from torch import Tensor, nn

from bench.architectures.catalogue import Architecture
from fastbn import explain, fuse
from fastbn.planning.explain import Explanation

BATCH = 4  # images of a comparison: small ones, in float64


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Norm-wise relative differences from stock in float64."""

    gradients: float  # fused, in float64
    outputs: float
    buffers: float  # the worst buffer
    gradients_float32: float  # fused in float32, by the engine of this device
    stock_float32: float  # stock in float32: what rounding alone makes
    warnings: tuple[str, ...]  # what fuse said


def coverage(architecture: Architecture) -> Explanation:
    """Return what of the network runs fused, at its own image size."""
    size = architecture.size
    return explain(architecture.build(), image=(3, size, size), batch=8)


def compare(architecture: Architecture, size: int) -> Agreement:
    """Return how far fused and stock steps differ on images of `size` × `size` pixels."""
    model = architecture.build()
    expected = _step(model, architecture, size, torch.float64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fused = _step(fuse(copy.deepcopy(model)), architecture, size, torch.float64)
        short = _step(fuse(copy.deepcopy(model)), architecture, size, torch.float32)
    plain = _step(model, architecture, size, torch.float32)
    return Agreement(
        gradients=difference(fused.gradient, expected.gradient),
        outputs=difference(fused.output, expected.output),
        buffers=max(difference(fused.buffers[name], b) for name, b in expected.buffers.items()),
        gradients_float32=difference(short.gradient, expected.gradient),
        stock_float32=difference(plain.gradient, expected.gradient),
        warnings=tuple(str(w.message) for w in said if "fuse" in str(w.message)),
    )


@dataclasses.dataclass(frozen=True)
class Step:
    """What one forward and backward left behind, in float64."""

    output: Tensor
    gradient: Tensor  # of all that trains, in one vector
    buffers: dict[str, Tensor]


def _step(model: nn.Module, architecture: Architecture, size: int, dtype: torch.dtype) -> Step:
    model = copy.deepcopy(model).to(dtype)
    output = model(architecture.images(BATCH, size).to(dtype))
    draw = torch.Generator().manual_seed(7)
    upstream = torch.randn(output.shape, generator=draw, dtype=torch.float64)
    output.backward(upstream.to(dtype))
    gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    buffers = {name: b.double() for name, b in model.named_buffers()}
    return Step(output.detach().double(), torch.cat(gradients), buffers)


def difference(found: Tensor, expected: Tensor) -> float:
    """Return ‖found − expected‖ / ‖expected‖; absolute below a norm of 0.1."""
    return float((found - expected).norm() / expected.norm().clamp(min=0.1))
