"""The CPU kernels built for another processor and run by its emulator, call by call, as an engine that the
operations' checks take.

Each call goes to a fresh process of emulated_driver.cpp with all the memory that it may touch, and its memory
comes back."""

from __future__ import annotations

import ctypes
import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine.native import abi, build
from fastbn.engine.native import engine as native
from fastbn.engine.native.tape import Tape

DRIVER = Path(__file__).with_name("emulated_driver.cpp")
THREADS = 2


def build_driver(compiler: list[str], program: Path) -> None:
    """The kernels and the driver as one program that needs no library of its machine."""
    flags = [flag for flag in build.FLAGS if flag not in ("-march=native", "-shared", "-fPIC")]
    command = [*compiler, *flags, "-static", *build.sources(), str(DRIVER), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


class Emulator(Tape):
    """Stands in for an engine's kernels: a call that the engine writes down runs at once,
    elsewhere."""

    def __init__(self, command: list[str]) -> None:
        super().__init__()
        self._command = command

    def note(self, value: Any) -> None:
        """Makes the memory of all tensors in a call's arguments known."""
        if isinstance(value, Tensor):
            self.adopt(torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()))
        elif isinstance(value, nn.Module):
            self.note([*value.parameters(), *value.buffers()])
        elif dataclasses.is_dataclass(value):
            self.note([getattr(value, field.name) for field in dataclasses.fields(value)])
        elif isinstance(value, (list, tuple)):
            for item in value:
                self.note(item)

    def _write(self, name: str, *arguments: Any) -> None:
        super()._write(name, *arguments)
        call = self.calls.pop()
        step = abi.StepStruct(what=call.what)
        step.n[: len(call.n)], step.at[: len(call.at)] = call.n, call.at
        first = ctypes.addressof(step) + abi.StepStruct.at.offset
        pointers = [(first + 8 * i, at) for i, at in enumerate(call.at) if at is not None]
        blobs = [(ctypes.addressof(s), ctypes.sizeof(s)) for s in (step, *call.structures)]
        patches: list[int] = []
        for stands, points in [*pointers, *call.fields]:
            if not any(start <= points < start + size for start, size in blobs):
                buffer = self.find(points)
                assert buffer is not None, f"{name} reads memory that is not known"
                blobs.append((buffer.start, buffer.bytes))
            for address in (stands, points):
                place = next(i for i, (start, size) in enumerate(blobs) if start <= address < start + size)
                patches += place, address - blobs[place][0]
        head = [THREADS, len(blobs), len(patches) // 4, *(size for _, size in blobs), *patches]
        given = bytes((ctypes.c_int64 * len(head))(*head)) + b"".join(
            ctypes.string_at(*blob) for blob in blobs
        )
        done = subprocess.run(self._command, input=given, capture_output=True, timeout=600)
        assert done.returncode == 0, f"{name}: exit code {done.returncode}: {done.stderr[-500:]!r}"
        assert len(done.stdout) == sum(size for _, size in blobs)
        at = 0
        for i, (start, size) in enumerate(blobs):
            if i > len(call.structures):  # the structures hold addresses over there
                ctypes.memmove(start, done.stdout[at : at + size], size)
            at += size


class Emulated(native.Native):
    """The native engine with its kernels elsewhere."""

    def __init__(self, command: list[str]) -> None:
        super().__init__()
        lanes = subprocess.run([*command, "lanes"], capture_output=True, text=True, timeout=60, check=True)
        self.lanes = int(lanes.stdout)
        self._emulator = self.kernels = self.buffers = Emulator(command)

    def convolve(self, *arguments: Any) -> Any:
        self._emulator.note(arguments)
        return super().convolve(*arguments)

    def form(self, *arguments: Any) -> Any:
        self._emulator.note(arguments)
        return super().form(*arguments)

    def gradient(self, *arguments: Any) -> Any:
        self._emulator.note(arguments)
        return super().gradient(*arguments)
