"""Which engine carries out a graph on a device, and why. Nothing here falls back in silence."""

from __future__ import annotations

import functools

import torch

from fastbn.choices import ENGINES, one_of
from fastbn.engine import build
from fastbn.engine.native import Native
from fastbn.engine.operations import Engine
from fastbn.engine.reference import Reference
from fastbn.errors import MachineError

REFERENCE = Reference()


def check(name: str) -> str:
    """The name, if it is an engine's; raises UsageError otherwise and MachineError for one that cannot run here."""
    if one_of("engine", name, ENGINES) == "triton":
        raise MachineError("engine 'triton' is not part of this version of fastbn; ask for 'auto', 'native', 'reference' or 'stock'")
    return name


def choose(name: str, device: torch.device, dtype: torch.dtype, exact: bool = False) -> tuple[Engine | None, str]:
    """The engine for activations of this device and dtype (None is stock: the model's own forward by autograd), and why.

    exact: no algorithm that rounds more than the plain sum does.
    """
    if check(name) == "stock":
        return None, "asked for"
    unfit = _why_not_native(device, dtype)
    if name == "native":
        if unfit:
            raise MachineError(f"engine 'native' was asked for, but {unfit}; ask for 'auto' or 'reference'")
        return _native(exact), "asked for"
    if name == "auto" and not unfit:
        return _native(exact), "fp32 on a CPU"
    return REFERENCE, "asked for" if name == "reference" else unfit


@functools.cache
def _native(exact: bool) -> Native:
    return Native(exact)


def _why_not_native(device: torch.device, dtype: torch.dtype) -> str:
    """Empty, or what stands against the native engine."""
    if device.type != "cpu":
        return f"the native engine is for CPUs, and this is {device.type}"
    if dtype != torch.float32:
        return f"the native engine is float32, and this is {str(dtype).removeprefix('torch.')}"
    try:
        build.library()
    except MachineError as error:
        return str(error)
    return ""
