"""The precisions of `--precision`, and what each means on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fastbn.engine import select
from fastbn.engine.context import mixed
from fastbn.engine.triton import step_kernels, tf32
from fastbn.errors import MachineError

STORED = {"mixed": (torch.float16, torch.bfloat16), "bf16": (torch.bfloat16, torch.bfloat16)}


def storage(precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes that activations and their gradients are stored in. ('auto' is not resolved yet:
    float32.)"""
    return STORED.get(precision, (torch.float32, torch.float32))


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run what it encloses in fp32 (never TF32), tf32, bf16 by autocast, or mixed (fastbn's float16
    activations and bfloat16 gradients, the rest fp32). Raises MachineError where the device has no such
    thing."""
    check(precision, device)
    if device.type == "xla":
        from fastbn.machine import xla

        xla.exact(precision == "fp32")
    # without a cache of cast weights: it lasts as long as this context, and would outlive their updates
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)
    with (
        tf32.allowed(precision == "tf32"),
        mixed() if precision == "mixed" else contextlib.nullcontext(),
        autocast,
    ):
        yield


def check(precision: str, device: torch.device) -> None:
    """Raise MachineError for a precision that this version does not offer on this device."""
    if precision == "tf32" and device.type != "cuda":
        raise MachineError(
            f"--precision tf32 needs a CUDA device, this run is on {device.type}; use fp32 or bf16"
        )
    if precision == "mixed" and not step_kernels.usable(device):
        what = "--precision mixed (fp16 activations, bf16 gradients)"
        raise MachineError(
            f"{what} needs the Triton engine on CUDA, this run is on {device.type}; use fp32 or bf16"
        )


def automatic(model_engine: str, device: torch.device) -> str:
    """Return what 'auto' means for a model's engine ('auto', 'stock', …): mixed where the Triton engine runs
    it; bf16, stock's best, where the engine failed its self-check on this GPU; else fp32."""
    if model_engine in ("auto", "triton") and step_kernels.usable(device):
        return "mixed"
    return "bf16" if model_engine == "auto" and select.failed_check(device, torch.float16) else "fp32"
