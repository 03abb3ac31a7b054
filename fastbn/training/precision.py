"""What `--precision` means on a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from fastbn.errors import MachineError


@contextlib.contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Runs what it encloses in fp32 (never TF32), tf32, or bf16 by autocast. Raises MachineError where the device has no such thing."""
    check(precision, device)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        # without a cache of cast weights: it lasts as long as this context, and would outlive their updates
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def check(precision: str, device: torch.device) -> None:
    """Raises MachineError for a precision that this version does not offer on this device."""
    if precision == "tf32" and device.type != "cuda":
        raise MachineError(f"--precision tf32 needs a CUDA device, this run is on {device.type}; use fp32 or bf16")
    if precision == "mixed":
        raise MachineError("--precision mixed (fp16 activations, bf16 gradients) is not part of this version of fastbn; use fp32 or bf16")
