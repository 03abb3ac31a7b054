"""The seconds and the memory of a network's BatchNorm-only training step: stock in its two layouts and
compiled, and fused; beside them stock's steps that train everything."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from bench.architectures.catalogue import Architecture
from bench.suite import clock
from bench.suite.process import reset_peak, resident_bytes, warm
from fastbn import fuse

CPU = torch.device("cpu")
LAYOUTS = ("stock", "stock channels-last")
FUSED = "fastbn"
USUAL = (*LAYOUTS, FUSED)
FUSED_NCHW = "fastbn NCHW"
COMPILED = "stock compiled"  # channels-last; it compiles for minutes
FULL = ("stock full", "stock full channels-last")
STOCK = (*LAYOUTS, COMPILED)  # what a fused step is measured against
PROVIDERS = (*USUAL, FUSED_NCHW, COMPILED, *FULL)
# glibc gives freed blocks of this size back at once, so that the resident memory is the memory in use
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def step_of(provider: str, architecture: Architecture, batch: int, size: int) -> Callable[[], None]:
    """Return one provider's training step: forward, cross-entropy, backward; no optimizer, which is a small
    vector's and the same for everyone."""
    model: nn.Module = architecture.build()
    x, labels = architecture.images(batch, size), torch.arange(batch) % 10  # classes of the smallest
    if provider in FULL:
        model.requires_grad_(True)
    if provider not in (LAYOUTS[0], FUSED_NCHW, FULL[0]):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last)
    if provider in (FUSED, FUSED_NCHW):
        model = fuse(model)
    run = torch.compile(model, dynamic=False) if provider == COMPILED else model

    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(run(x), labels).backward()

    return step


def seconds(
    architecture: Architecture, batch: int, size: int, rounds: int, providers: Iterable[str] = USUAL
) -> dict[str, list[float]]:
    """Return each provider's seconds a step, taken in turn, after two steps that nobody times.

    With one thread they are the process's own processor time, which other work on the machine hardly touches.
    """
    steps = {provider: step_of(provider, architecture, batch, size) for provider in providers}
    for step in steps.values():
        step()
        step()
    return clock.interleaved(steps, rounds, CPU, clock=clock.of_threads())


def peak_bytes(architecture: Architecture, batch: int, size: int) -> dict[str, int]:
    """Return the bytes that each provider's steps hold at most, beyond the idle process and the network's
    own parameters and buffers."""
    if any(os.environ.get(name) != value for name, value in GIVE_BACK.items()):
        raise RuntimeError(f"the peak of memory is measured in a process with {GIVE_BACK}")
    warm(fused=True)
    peaks = {}
    for provider in USUAL:
        step = step_of(provider, architecture, batch, size)
        gc.collect()
        idle = resident_bytes("VmRSS")
        reset_peak()
        for _ in range(2):
            step()
        peaks[provider] = resident_bytes("VmHWM") - idle
        del step
        gc.collect()
    return peaks
