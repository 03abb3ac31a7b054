"""Finds the OpenMP library that PyTorch computes with, whose threads the CPU kernels share.

The kernels call it by its address, so that they build with compilers that have no OpenMP of their own."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch

LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")


def find_parallel() -> int | None:
    """Return the address of `GOMP_parallel`, by which GNU's OpenMP and LLVM's share a function out among
    their threads; None for a PyTorch without OpenMP."""
    for name in LIBRARIES:
        for path in (name, str(Path(torch.__file__).parent / "lib" / name)):
            try:
                # of what is loaded already, PyTorch's own library sees the OpenMP that it is linked to
                library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
                return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
    return None
