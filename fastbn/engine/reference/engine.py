"""The reference engine: its operations, by torch's own convolution, of any dtype and on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import Execution, Memory, Operations
from fastbn.engine.reference.operations import BITS, ReferenceOperations
from fastbn.engine.reference.workspace import ReferenceWorkspace
from fastbn.graph import activations
from fastbn.graph.regions import Conv, Shape


class Reference(ReferenceOperations):
    """The engine that runs anywhere, float64 too."""

    name = "reference"
    groups = True
    tasks = True
    halves = True
    functions = activations.NAMES
    execution = Execution.EAGER

    def supports(self, conv: Conv) -> str | None:
        return None

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        return dtype in BITS

    def algorithm(self, conv: Conv, size: tuple[int, int] | None = None) -> Algorithm:
        return Algorithm.TORCH

    def choices(self, convs: Sequence[Conv], shapes: dict[int, Shape]) -> list[Algorithm]:
        return [self.algorithm(conv) for conv in convs]

    def workspace(self, memory: Memory) -> Operations:
        return ReferenceWorkspace(memory, lambda channels: channels)  # a byte an element

    def pack(
        self, conv: Conv, weight: Tensor, dtype: torch.dtype, gradients: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        by: Algorithm | None = None,
    ) -> Tensor:  # fmt: skip
        return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
