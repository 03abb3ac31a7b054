"""The figures that a plan needs of a device: its memory and its speeds. This machine's are read and measured,
others' are their makers' figures."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable

import torch

from fastbn.choices import one_of
from fastbn.machine import devices

GB = 10**9
LAUNCH = 1.3e-6  # seconds, inside a CUDA graph
SPARE = 0.05  # of the memory, which a plan leaves: allocators round up, libraries take workspaces


@dataclasses.dataclass(frozen=True)
class Device:
    """A device's figures: memory in bytes, free for a run; bytes_per_second of a copy; flops_per_second of
    matrix products, by precision; seconds a launch."""

    name: str
    type: str
    memory: int
    bytes_per_second: float
    flops_per_second: dict[str, float]
    launch: float
    source: str
    capability: int = 0  # of a GPU, ×10: which kernels it has


def _gpu(
    name: str, capability: int, memory: float, terabytes: float, half: float, tf32: float, fp32: float
) -> Device:
    """Return a GPU's data sheet: GB, TB/s, and dense TFLOP/s in half precision, TF32 and float32."""
    flops = {"mixed": half, "bf16": half, "tf32": tf32, "fp32": fp32}
    speeds = {precision: figure * 1e12 for precision, figure in flops.items()}
    return Device(
        name,
        "cuda",
        int(memory * GB),
        terabytes * 1e12,
        speeds,
        LAUNCH,
        "by its data sheet, nothing measured",
        capability,
    )


SHEETS = {
    "a100": _gpu("NVIDIA A100 80GB SXM", 80, 80, 2.04, 312, 156, 19.5),
    "h100": _gpu("NVIDIA H100 80GB SXM", 90, 80, 3.35, 989, 494, 67),
    "h200": _gpu("NVIDIA H200 141GB SXM", 90, 141, 4.8, 989, 494, 67),
    "l40s": _gpu("NVIDIA L40S 48GB", 89, 48, 0.864, 362, 183, 91.6),
    "rtx4090": _gpu("NVIDIA RTX 4090 24GB", 89, 24, 1.008, 165, 82.6, 82.6),
}


def sheet(name: str) -> Device:
    """Return a device by its data sheet. Raises UsageError for one that is not known."""
    return SHEETS[one_of("--on", name.lower(), SHEETS)]


def here(device: torch.device, memory: float | None = None) -> Device:
    """Return this machine's device, its speeds measured in half a second. memory: GB, where a run may not
    take all that is free."""
    free = int(memory * GB) if memory is not None else free_memory(device)
    flops = {
        precision: _flops(device, precision)
        for precision in ("fp32", *(("tf32", "bf16") if device.type == "cuda" else ()))
    }
    flops.setdefault("bf16", flops["fp32"])
    flops["mixed"] = flops["bf16"]
    launch = LAUNCH if device.type == "cuda" else 0.0
    measured = "by a copy and a matrix product, measured here"
    return Device(devices.describe(device), device.type, free, _bandwidth(device), flops, launch, measured)


def free_memory(device: torch.device) -> int:
    """Return the bytes that a run may take: what CUDA has free once PyTorch has given back what it can (not
    the memory of graphs, which counts as unused there); of a machine's memory what is available."""
    if device.type == "cuda":
        devices.free_unused(device)
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bandwidth(device: torch.device) -> float:
    source = torch.ones((1 if device.type == "cpu" else 16) * 2**24, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device)


def _flops(device: torch.device, precision: str) -> float:
    size = 1024 if device.type == "cpu" else 8192
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        return 2 * size**3 / _seconds(lambda: a @ a, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the least seconds of five calls."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        devices.carry_out(device, wait=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
