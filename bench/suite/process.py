"""Measurements that need a process of their own, which tells them as one line of JSON; and its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from bench.records.conditions import ROOT
from fastbn import fuse
from fastbn.errors import MachineError

K = TypeVar("K")
Found = dict[str, Any]  # what a process tells
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def told(*words: object, **more: Any) -> Found:
    """Run a module (its name, then its arguments) in a fresh process and return what its last line says.
    more: what subprocess.run takes."""
    command = [sys.executable, "-m", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, **more)
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def resident_bytes(field: str) -> int:
    """Return VmRSS, what is resident now, or VmHWM, the most that was. (ru_maxrss also counts what the parent
    held at the fork.) Raises MachineError where there is no /proc."""
    if not STATUS.exists():
        raise MachineError(f"the peak is read from {STATUS}, and there is none on {sys.platform}: use Linux")
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024  # told in kB


def reset_peak() -> bool:
    """Set VmHWM back to VmRSS. False where that is forbidden: the peak then counts the imports too, which
    could only raise it."""
    try:
        RESET.write_text("5", encoding="utf-8")
    except OSError:
        return False
    return True


def allocated(device: torch.device) -> int:
    """Return what a GPU's allocator holds, and count its peak anew from here on; 0 of a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_beyond(held: int, device: torch.device) -> int | None:
    """Return the most that a GPU's allocator has held since then beyond what it held; None of a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - held


def in_turn(calls: Mapping[K, Callable[[], Found]], repeats: int) -> dict[K, list[Found]]:
    """Return what fresh processes tell, all of these calls taken in turn so many times."""
    rounds = [{name: call() for name, call in calls.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in calls}


def words(**options: object) -> list[str]:
    """Return options as words of a command line: of True the name alone, of None and False nothing."""
    found: list[str] = []
    for name, value in options.items():
        if value is not None and value is not False:
            found += [f"--{name.replace('_', '-')}", *[str(value)] * (value is not True)]
    return found


def warm(compiled: bool = False, fused: bool = False) -> None:
    """Pay what a process pays once, whatever its network: thread pools, oneDNN, autograd; and the compiler,
    or fastbn's kernels and tracing, where they are used."""
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)

    def small(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weight, padding=1).relu().mean()

    (torch.compile(small) if compiled else small)(torch.randn(2, 16, 8, 8)).backward()
    torch.randn(64, 64) @ torch.randn(64, 64)
    if fused:
        tiny = fuse(nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)))
        tiny(torch.randn(2, 3, 8, 8)).mean().backward()
