"""The machine's description and its counters: device, versions, peak memory, energy."""

from __future__ import annotations

import gc
import os
import platform
import resource
import sys
from typing import Any

import torch
from torch import Tensor

from fastbn.errors import MachineError
from fastbn.version import VERSION


def choose_device(name: str) -> torch.device:
    """Return the device of this name; 'auto' is CUDA where there is one. Raises MachineError for a device
    that this machine lacks."""
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError(
            "--device cuda: torch finds no CUDA device here; use --device cpu, or install a CUDA build of "
            "torch"
        )
    if name == "xla":
        from fastbn.machine import xla

        return xla.device()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def check_recipe(bn_stats: str, device: torch.device) -> None:
    """Raises MachineError for a way to train that this device has not."""
    if device.type == "xla" and bn_stats == "frozen":
        raise MachineError(
            "--bn-stats frozen: torch_xla has no gradient of a BatchNorm in evaluation mode; use --device "
            "cpu or cuda"
        )


def describe(device: torch.device) -> str:
    """Return the device as a person would name it: 'AMD EPYC, AVX-512, 2 threads'."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "xla":
        from fastbn.machine import xla

        return f"{xla.describe()}, torch_xla {xla.version()}"
    threads = torch.get_num_threads()
    parts = [_processor(), instruction_set(), f"{threads} thread{'s' * (threads != 1)}"]
    return ", ".join(part for part in parts if part)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float:
    """Return how many processes wanted a processor in the last minute; 0 where nothing tells."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0


def instruction_set() -> str:
    """Return the vector instructions that PyTorch takes this CPU for: 'AVX-512', 'AVX2', …; 'AVX2 emulated'
    where ATEN_CPU_CAPABILITY withholds the AVX-512 that the CPU has; empty where PyTorch names none."""
    known = torch.backends.cpu.get_cpu_capability()
    if known == "AVX2" and "avx512f" in _cpuinfo("flags").split():
        return "AVX2 emulated"
    return {"AVX512": "AVX-512", "DEFAULT": "NEON" if platform.machine() in ("aarch64", "arm64") else ""}.get(
        known, known
    )


def instructions(device: torch.device) -> str | None:
    """Return the CPU's widest vector instructions as torch names them ('AVX512', 'AVX2', …); None for
    another device."""
    return torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else None


def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a scalar on the device, for which the host does not wait."""
    if device.type == "xla":
        from fastbn.machine import xla

        return xla.number(value, dtype, device)
    return torch.full((), value, dtype=dtype, device=device)


def carry_out(device: torch.device, wait: bool = False) -> None:
    """Run on XLA what it has only recorded so far, as one graph, compiled where it is new; elsewhere it has
    run already. `wait`: until a device that works beside its host has caught up."""
    if device.type == "xla":
        from fastbn.machine import xla

        xla.carry_out(wait)
    elif wait and device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    """Return the versions of fastbn, torch and Python, by name."""
    return {"fastbn": VERSION, "torch": torch.__version__, "python": platform.python_version()}


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most that tensors have occupied on CUDA; elsewhere the process's largest resident size so
    far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_unused(device: torch.device) -> None:
    """Let go of what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class EnergyMeter:
    """Joules that the GPU has used since the meter was made; None where NVML or its Python binding is not
    there."""

    def __init__(self, device: torch.device):
        self._nvml: Any = None
        if device.type != "cuda":
            return
        try:
            import pynvml
        except ImportError:
            return
        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(
                uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
            )
            self._start = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except pynvml.NVMLError:
            return
        self._nvml = pynvml

    def joules(self) -> float | None:
        """Return the joules since the last call, or since the meter was made."""
        if self._nvml is None:
            return None
        start, self._start = self._start, self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        return (self._start - start) / 1000


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(name: str) -> str:
    """Return the first processor's entry in Linux' list; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), "")
    except OSError:
        return ""
