"""The executor runs a region's walks, and runs a walk like one that it has seen faster.

Walks run eagerly, replayed as CUDA graphs (triton/cuda_graphs.py), or played as programs of the
native library (native/program.py); the region chooses by what its engine says of itself."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import torch
from torch import Tensor

from fastbn.engine import walk
from fastbn.engine.triton import tf32
from fastbn.engine.walk import RegionGradients

KEYS = 4  # states of which recordings are kept: each holds a step's memory


class Recording(Protocol):
    """A forward as it ran, kept for its backward."""

    def backward(
        self, gradients: list[Tensor | None], vectors: Tensor, saved: list[Tensor]
    ) -> RegionGradients | None:
        """Run as walk.backward does, or return None where the walk itself has to run."""


@dataclasses.dataclass
class ForwardResult:
    """The tensors that a forward made. `lease` (1,) keeps what it saved from being overwritten for as long as
    that tensor lives; where nothing is lent it is there too, for checkpointing counts what is saved."""

    outputs: list[Tensor]
    vectors: Tensor
    saved: list[Tensor]
    call: walk.Call
    recording: Recording | None = None
    lease: Tensor = dataclasses.field(default_factory=lambda: torch.empty(1, dtype=torch.uint8))


class Executor(Protocol):
    """Carries out one region's walks, and keeps what it needs to do so faster."""

    def forward(self, call: walk.Call, inputs: list[Tensor]) -> ForwardResult:
        """Run as walk.forward does."""


def walked(call: walk.Call, inputs: list[Tensor]) -> ForwardResult:
    """Walk forward, operation by operation."""
    return ForwardResult(*walk.forward(call, inputs), call)


class Eager:
    """The executor that walks each time, and keeps nothing."""

    def forward(self, call: walk.Call, inputs: list[Tensor]) -> ForwardResult:
        return walked(call, inputs)


def key_of(call: walk.Call, inputs: list[Tensor]) -> Any:
    """Return all that a recording holds fixed: shapes, what gradient is wanted of, each module's settings and
    its tensors' places, and of the process whether tensors are inference's (which nothing else may write to)
    and whether float32's products are TF32's."""
    assert call.held is not None
    process = torch.is_inference_mode_enabled(), tf32.convolutions()
    given = tuple((x.shape, x.dtype, x.device) for x in inputs)
    return given, call.live, call.again, tuple(map(id, call.packed)), call.held.state(), process
