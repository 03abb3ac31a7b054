"""A check that a network's fused step is the network's own: against its stock path in float64, with random
upstream gradients."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import torch

from bench.architectures.catalogue import Architecture
from bench.oracle.stock import Run, error, flat_gradient, run
from fastbn import explain, fuse
from fastbn.engine import fused_forward, select
from fastbn.engine.native.engine import Native
from fastbn.planning.explain import Explanation
from fastbn.planning.work import step_work

BATCH = 4  # images of a comparison: small ones, in float64


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Norm-wise relative differences from stock in float64."""

    gradients: float  # fused, in float64
    outputs: float
    buffers: float  # the worst buffer
    gradients_float32: float  # fused in float32, by the engine of this device
    stock_float32: float  # stock in float32: what rounding alone makes
    outputs_float32: float  # fused in float32
    stock_outputs_float32: float
    warnings: tuple[str, ...]  # what the fused float32 step said


def coverage(architecture: Architecture) -> Explanation:
    """Return what of the network runs fused, at its own image size."""
    size = architecture.size
    return explain(architecture.build(), image=(3, size, size), batch=8)


def work(architecture: Architecture, batch: int, size: int) -> dict[str, Any]:
    """Return what a step of the network is made of, stock and fused, and the instruction set that the native
    engine's algorithms were chosen for."""
    model = fuse(architecture.build())
    fused = fused_forward(model)
    assert fused is not None
    engine, _ = select.choose("native", torch.device("cpu"), torch.float32)
    assert isinstance(engine, Native)
    program = fused.program(torch.device("cpu"), torch.float32)[1]
    stock, own, _ = step_work(program, engine, [torch.empty(batch, 3, size, size)])
    return {
        "batch_size": batch,
        "size": size,
        "instructions": engine.instructions,
        "work": {"stock": dict(stock), "fused": dict(own)},
    }


def compare(architecture: Architecture, size: int) -> Agreement:
    """Return how far fused and stock steps differ on images of `size` × `size` pixels, or of the network's
    own size where that is less."""
    model = architecture.build()
    x = architecture.images(BATCH, min(size, architecture.size))

    def step(dtype: torch.dtype, engine: str) -> Run:
        return run(fuse(copy.deepcopy(model).to(dtype), engine), x.to(dtype))

    expected, rounded = step(torch.float64, "stock"), step(torch.float32, "stock")
    fused = step(torch.float64, "reference")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        short = step(torch.float32, "auto")
    gradient = flat_gradient(expected)
    return Agreement(
        gradients=error(flat_gradient(fused), gradient),
        outputs=error(fused.outputs[0], expected.outputs[0]),
        buffers=max(error(fused.buffers[name], b) for name, b in expected.buffers.items()),
        gradients_float32=error(flat_gradient(short), gradient),
        stock_float32=error(flat_gradient(rounded), gradient),
        outputs_float32=error(short.outputs[0], expected.outputs[0]),
        stock_outputs_float32=error(rounded.outputs[0], expected.outputs[0]),
        warnings=tuple(str(w.message) for w in said if "fastbn" in str(w.message)),
    )
