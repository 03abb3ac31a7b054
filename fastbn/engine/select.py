"""The choice of the engine that runs a graph on a device, and its reason. Nothing here falls back in
silence."""

from __future__ import annotations

import functools
import os
import warnings

import torch

from fastbn.choices import ENGINES, one_of
from fastbn.engine.interface import Engine
from fastbn.engine.native import build
from fastbn.engine.native.engine import STORAGE, Native
from fastbn.engine.reference.engine import Reference
from fastbn.errors import MachineError

REFERENCE = Reference()
# It leaves weight gradients and unread activations out by itself, while torch_xla takes the reference
# engine's statistics and masks to the CPU and back: 1 graph a step against 18 (docs/tpu.md has the times).
XLA = "XLA compiles a step of the model's own forward whole"
OLDEST = 80  # compute capability × 10: what the kernels' matrix instructions need


def check(name: str | Engine) -> str | Engine:
    """Return the name, if it is an engine's, or the engine; raise UsageError otherwise and MachineError for
    one that cannot run here."""
    if not isinstance(name, str):
        return name
    if one_of("engine", name, ENGINES) == "triton" and not (_interpreted() or torch.cuda.is_available()):
        raise MachineError(
            "engine 'triton' was asked for, but PyTorch finds no CUDA device here; ask for 'auto', 'native' "
            "or 'reference' "
            "(TRITON_INTERPRET=1 runs its kernels on CPU tensors, slowly, to check them)"
        )
    return name


def choose(
    name: str | Engine, device: torch.device, dtype: torch.dtype, exact: bool = False
) -> tuple[Engine | None, str]:
    """Return the engine for activations of this device and dtype (None is stock: the model's own forward by
    autograd), and why. One that was handed in is itself.

    exact: no algorithm that rounds more than the plain sum does.
    """
    if not isinstance(name, str):
        return name, "handed in"
    if check(name) == "stock":
        return None, "asked for"
    if name == "reference":
        return REFERENCE, "asked for"
    if name == "auto" and (why := stock_instead(device, dtype)):
        return None, why
    if name == "triton" or (name == "auto" and device.type == "cuda"):
        unfit = why_not_triton(device, dtype)
        if not unfit:
            return _triton(
                capability(device)
            ), "asked for" if name == "triton" else f"{_short(dtype)} on CUDA"
    else:
        unfit = _why_not_native(device, dtype)
        if not unfit:
            return _native(exact), "asked for" if name == "native" else f"{_short(dtype)} on a CPU"
    if name != "auto":
        raise MachineError(f"engine {name!r} was asked for, but {unfit}; ask for 'auto' or 'reference'")
    return REFERENCE, unfit


def stock_instead(device: torch.device, dtype: torch.dtype) -> str:
    """Return why `auto` leaves a model to stock PyTorch on this device, or ""."""
    # the reference engine is no substitute on a GPU: there it is slower than stock
    return XLA if device.type == "xla" else failed_check(device, dtype)


@functools.cache
def warn_of_reference(why: str) -> None:
    """Warn once that a library user who left the choice to fastbn gets the slow engine where this machine
    could have the fast one."""
    warnings.warn(f"fastbn's engine is 'reference', which is slow: {why}", stacklevel=2)


@functools.cache
def _native(exact: bool) -> Native:
    return Native(exact)


@functools.cache
def _triton(capability: int) -> Engine:
    from fastbn.engine.triton.engine import Triton

    return Triton(capability)


def capability(device: torch.device) -> int:
    """Return a GPU's compute capability as a number, 90 for a Hopper GPU; 0 for the interpreter on a CPU."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """Return what stands against the Triton engine, or ""."""
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the Triton engine takes float32, float16 and bfloat16, and this is {_short(dtype)}"
    if device.type != "cuda" and not _interpreted():
        return f"the Triton engine is for CUDA, and this is {device.type}"
    if device.type == "cuda" and capability(device) < OLDEST:
        return (
            f"the Triton engine needs compute capability {OLDEST / 10}, and "
            f"{torch.cuda.get_device_name(device)} has less"
        )
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton can't be imported ({error})"
    return failed_check(device, dtype)


def failed_check(device: torch.device, dtype: torch.dtype) -> str:
    """Return "" where the Triton kernels have passed their self-check on this GPU, or it is no GPU of theirs;
    else what failed."""
    if device.type != "cuda" or capability(device) < OLDEST:
        return ""
    from fastbn.engine.triton.self_check import verdict

    return verdict(device, dtype)


def _why_not_native(device: torch.device, dtype: torch.dtype) -> str:
    """Return what stands against the native engine, or ""."""
    if device.type != "cpu":
        return f"the native engine is for CPUs, and this is {device.type}"
    if dtype not in STORAGE:
        return f"the native engine takes float32 and bfloat16, and this is {_short(dtype)}"
    try:
        build.library()
    except MachineError as error:
        return str(error)
    return ""
