"""The Triton engine: the kernels of kernels/triton, on CUDA from compute capability 8.0 on; with
TRITON_INTERPRET=1 on CPU tensors, to check them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastbn.engine.algorithm import Algorithm
from fastbn.engine.interface import Execution, Memory, Operations
from fastbn.engine.triton import tuning as rules
from fastbn.engine.triton.operations import TritonOperations, TritonWeight
from fastbn.engine.triton.tuning_table import Tuning
from fastbn.engine.triton.workspace import TritonWorkspace
from fastbn.graph.activations import IDENTITY, RELU
from fastbn.graph.regions import Conv, Shape
from fastbn.kernels.triton import rolling


class Triton(TritonOperations):
    """The engine for CUDA. Which kernel takes a convolution, and how it is cut, was measured, or goes by rule
    where nothing was."""

    name = "triton"
    tasks = False
    halves = False
    functions = frozenset({IDENTITY.name, RELU.name})
    groups = False  # its kernels merge and use the statistics of a launch in the next one
    execution = Execution.CUDA_GRAPH

    def __init__(
        self,
        capability: int = 0,
        by: Algorithm | None = None,
        tuning: Tuning | None = None,
        precision: str | None = None,
    ) -> None:
        """capability: of the GPU whose choices it takes, as select.capability has it; 0 for the interpreter.
        by: the one algorithm that runs every convolution, in place of the table's or the rule's.
        tuning: what was measured; what ships, where it is None.
        precision: Triton's word for how float32 is multiplied; as PyTorch's own switches have it, where it is
        None."""
        super().__init__(capability, tuning, precision)
        self._by = by

    def supports(self, conv: Conv) -> str | None:
        return None

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        return dtype in (torch.float32, torch.float16, torch.bfloat16)

    def algorithm(self, conv: Conv, size: tuple[int, int] | None = None) -> Algorithm:
        return self._by or rules.algorithm(conv, size, self.capability, self.tuning)

    def choices(self, convs: Sequence[Conv], shapes: dict[int, Shape]) -> list[Algorithm]:
        return [self.algorithm(conv, shapes[conv.source][2:]) for conv in convs]

    def workspace(self, memory: Memory) -> Operations:
        return TritonWorkspace(memory, self.algorithm)

    def pack(
        self, conv: Conv, weight: Tensor, dtype: torch.dtype, gradients: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        by: Algorithm | None = None,
    ) -> TritonWeight:  # fmt: skip
        w, v = weight.detach().to(dtype), weight.detach().to(gradients or dtype)  # (C, C_in, KH, KW)
        algorithm = by or self.algorithm(conv, size)
        if algorithm == Algorithm.ROLLING:
            w, v = rolling.pack_weight(w), rolling.pack_weight(v.flip(2, 3).transpose(0, 1))
        elif algorithm == Algorithm.LIBRARY:
            w, v = (t.contiguous(memory_format=torch.channels_last) for t in (w, v))
        else:
            w, v = w.permute(2, 3, 1, 0).contiguous(), v.permute(2, 3, 0, 1).contiguous()
        if self.early:
            # a launch that awaits the packing, which a kernel that begins early would not
            # (kernels/triton/early_launch.py)
            w.new_zeros(1)
        return TritonWeight(algorithm, w, v)
