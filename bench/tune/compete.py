"""The Triton engine's tables are measured so: candidates that agree are timed in turn, compiled beforehand by
all processors."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch

from bench.gpu.measure import DEVICE
from bench.oracle.errors import relative
from bench.records.rows import reason
from bench.suite.clock import Call, burst, captured, device_seconds, interleaved, synchronise

K = TypeVar("K")
# between two orders of the same sums
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
# in one graph: a launch from Python takes longer than most kernels
TIMES = 20 if DEVICE.type == "cuda" else 1
MOST_PROCESSES = 14


def compete(
    candidates: Iterable[K], make: Callable[[K], Call], tolerance: float, rounds: int
) -> tuple[dict[K, float], dict[K, str]]:
    """Return the median microseconds of every candidate that gives what the first gives; and why the others
    are left out: a compiler's error, too much shared memory, another result. Raises LookupError where none is
    left."""
    ready: dict[K, Call] = {}
    left_out: dict[K, str] = {}
    expected = None
    for candidate in candidates:
        try:
            call = make(candidate)
            found = call().clone()
            synchronise(DEVICE)
            expected = found if expected is None else expected
            if (off := relative(found, expected)) > tolerance:
                left_out[candidate] = f"differs by {off:.1e}"
            else:
                ready[candidate] = captured(burst(call, TIMES), DEVICE)
        except Exception as error:  # whatever it is, the others are measured
            left_out[candidate] = reason(error)
    if not ready:
        raise LookupError(f"no candidate is left: {left_out}")
    samples = interleaved(ready, rounds, DEVICE, clock=device_seconds)
    return {name: 1e6 * statistics.median(own) / TIMES for name, own in samples.items()}, left_out


def called(candidates: Iterable[K], make: Callable[[K], Call]) -> None:
    """Call every candidate once, for what the compiler leaves in its cache."""
    for candidate in candidates:
        try:
            make(candidate)()
        except Exception:  # compete says which, and why
            continue


def ahead(run: Callable[..., None], tasks: list[tuple[Any, ...]]) -> None:
    """Run every task in a process of its own kind, several at a time, on a GPU: Triton compiles on one
    processor."""
    if DEVICE.type != "cuda" or len(tasks) < 2:
        return
    processes = min(MOST_PROCESSES, os.cpu_count() or 1, len(tasks))
    with concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        done = [pool.submit(run, *task) for task in tasks]
        for failed in (task.exception() for task in done):
            if failed is not None:
                print(f"compiling ahead: {failed!r}; it is compiled when it is measured")
