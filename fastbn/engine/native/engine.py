"""The native engine: the C++ kernels of kernels/cpu, built for this CPU, by an algorithm for each shape."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastbn.engine.algorithm import Algorithm
from fastbn.engine.buffers import Buffers
from fastbn.engine.interface import Execution, Memory, Operations
from fastbn.engine.native import abi, build, openmp, weight_layout
from fastbn.engine.native.algorithms import NAMES, algorithm, choices
from fastbn.engine.native.operations import NativeOperations
from fastbn.engine.native.tape import Tape
from fastbn.engine.native.weight_layout import PackedWeight
from fastbn.engine.workspace import Workspace
from fastbn.graph import activations
from fastbn.graph.regions import Conv, Shape

STORAGE = (torch.float32, torch.bfloat16)
NUMBERS = {by: M for M, by in NAMES.items()}  # the kernels' own


class Native(NativeOperations):
    """The engine for CPUs with a C++ compiler. Raises MachineError where its kernels can't be built."""

    name = "native"
    groups = True
    tasks = True
    halves = True
    functions = activations.NAMES
    execution = Execution.PROGRAM

    def __init__(self, exact: bool = False) -> None:
        """exact: no Winograd."""
        kernels: Any = build.library()
        abi.declare(kernels)
        kernels.fastbn_openmp(openmp.find_parallel())
        super().__init__(kernels, Buffers(), kernels.fastbn_lanes())
        self.exact = exact
        self.instructions: str = kernels.fastbn_instructions().decode()

    def onto(self, tape: Tape) -> Operations:
        """Return this engine's operations with a tape in place of the kernels and of the memory: they compute
        nothing, and leave their calls there."""
        own = copy.copy(self)
        own.kernels = own.buffers = tape
        return own

    def supports(self, conv: Conv) -> str | None:
        return None

    def takes(self, device: torch.device, dtype: torch.dtype) -> bool:
        return device.type == "cpu" and dtype in STORAGE

    def algorithm(self, conv: Conv, size: tuple[int, int] | None = None) -> Algorithm:
        return NAMES[algorithm(conv, self.exact, size, self.instructions)]

    def choices(self, convs: Sequence[Conv], shapes: dict[int, Shape]) -> list[Algorithm]:
        return [NAMES[M] for M in choices(convs, shapes, self.exact, self.instructions)]

    def workspace(self, memory: Memory) -> Operations:
        return Workspace(memory, self.mask_bytes)

    def pack(
        self, conv: Conv, weight: Tensor, dtype: torch.dtype, gradients: torch.dtype | None = None,
        size: tuple[int, int] | None = None,
        by: Algorithm | None = None,
    ) -> PackedWeight:  # fmt: skip
        return weight_layout.pack(conv, weight, NUMBERS[by or self.algorithm(conv, size)], self.lanes)
