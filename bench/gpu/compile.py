"""python -m bench.gpu compile: the kernels that the other stages will launch, compiled into Triton's cache by
all processors at once.

In a stage of its own each would wait for the one before it, a second apiece, with the GPU idle. A network is
walked on fake tensors; what it launches is noted, and compiled by processes that know the GPU's capability
and never touch it."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import time
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import MockTensor

from bench.audit.launches import DTYPES, PRECISIONS, noted, walk
from bench.gpu.measure import Sink
from fastbn.engine.context import mixed, unrecorded
from fastbn.engine.triton.engine import Triton

# depth, size, batches; CIFAR-866 launches what CIFAR-20 does
NETWORKS = {"cifar": (20, 32, (128, 1024)), "imagenet": (50, 224, (256,))}
KINDS = {"cifar": ("mixed", "fp16", "bf16", "tf32"), "imagenet": ("mixed", "fp16")}
# a kernel's module and name, and what it is launched with
Task = tuple[str, str, tuple[tuple[str, Any], ...]]
HELD = "held"  # stands for a tensor: (HELD, dtype)


class Pointer(MockTensor):
    """A tensor's dtype, and the address that allocators give."""

    @staticmethod
    def data_ptr() -> int:
        return 0


class Driver:
    """The answers that Triton asks of a driver before it compiles."""

    def __init__(self, capability: int):
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def launched(family: str, kind: str, training: bool, capability: int) -> dict[Task, None]:
    """Return what a network's pass launches."""
    depth, size, batches = NETWORKS[family]
    found: dict[Task, None] = {}

    def take(kernel: Any, given: dict[str, Any]) -> None:
        held = {n: (HELD, value.dtype) if isinstance(value, Tensor) else value for n, value in given.items()}
        found[kernel.__module__, kernel.__name__, tuple(sorted(held.items(), key=lambda one: one[0]))] = None

    with (
        noted(take),
        unrecorded(),
        mixed() if kind == "mixed" else contextlib.nullcontext(),
        torch.set_grad_enabled(training),
    ):
        engine = Triton(capability, precision=PRECISIONS.get(kind, "ieee"))
        walk(family, depth, size, batches, DTYPES.get(kind, torch.float32), engine)
    return found


def compiled(task: Task, capability: int) -> str:
    """Compile one as JITFunction does it, which will find it in the cache; return what went wrong, or ""."""
    module, name, given = task
    triton.runtime.driver.set_active(Driver(capability))
    held = (HELD,)
    arguments = {n: Pointer(v[1]) if isinstance(v, tuple) and v[:1] == held else v for n, v in given}
    try:
        getattr(importlib.import_module(module), name).warmup(grid=(1,), **arguments)
    except Exception as error:  # the stage that needs it will say so again
        return f"{name}: {type(error).__name__}: {str(error)[:200]}"
    return ""


def compile_all(sink: Sink, capability: int, jobs: int | None = None) -> int:
    """Compile all of them, and return how many did not compile."""
    start, tasks = time.perf_counter(), dict[Task, None]()
    for family, kinds in KINDS.items():
        for kind, training in itertools.product(kinds, (True, False)):
            tasks |= launched(family, kind, training, capability)
    noted = time.perf_counter() - start
    with multiprocessing.get_context("spawn").Pool(jobs or os.cpu_count()) as pool:
        failures = [why for why in pool.starmap(compiled, [(task, capability) for task in tasks], 1) if why]
    sink.add(kernels=len(tasks), seconds_to_note=noted, seconds=time.perf_counter() - start)
    sink.finish(failures=[{"name": "compile", "what": why} for why in failures])
    return len(failures)
