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

from bench.audit.launches import DTYPES, PRECISIONS, Driver, noted, walk
from bench.gpu.measure import Sink
from fastbn.engine.context import mixed, unrecorded
from fastbn.engine.triton.engine import Triton

# depth, size, batches; CIFAR-866 launches what CIFAR-20 does
NETWORKS = {"cifar": (20, 32, (128, 1024)), "imagenet": (50, 224, (256,))}
KINDS = {"cifar": ("mixed", "fp16", "bf16", "tf32"), "imagenet": ("mixed", "fp16")}
Task = tuple[str, str, str]  # a kernel's module and name, and what Triton compiles, in its own JSON


def launched(family: str, kind: str, training: bool, capability: int) -> dict[Task, None]:
    """Return what a network's pass launches."""
    depth, size, batches = NETWORKS[family]
    found: dict[Task, None] = {}

    def take(kernel: Any, told: dict[str, Any]) -> None:
        found[kernel.__module__, kernel.__name__, told["specialization_data"]] = None

    stored = mixed() if kind == "mixed" else contextlib.nullcontext()
    with noted(take, capability), unrecorded(), stored, torch.set_grad_enabled(training):
        engine = Triton(capability, precision=PRECISIONS.get(kind, "ieee"))
        walk(family, depth, size, batches, DTYPES.get(kind, torch.float32), engine)
    return found


def compiled(task: Task, capability: int) -> str:
    """Compile one as its launch will find it in the cache; return what went wrong, or ""."""
    module, name, told = task
    triton.runtime.driver.set_active(Driver(capability))
    try:
        getattr(importlib.import_module(module), name).preload(told)
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
