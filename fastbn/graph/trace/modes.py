"""Read the modes under which an operation runs, and which a trace does not record."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

OWN: type | None = None  # the mode by which operations are traced
DEVICES = ("cpu", "cuda", "xpu", "mps")
MODES: dict[str, Callable[[], Any]] = {
    "the grad mode": torch.is_grad_enabled,
    "the inference mode": torch.is_inference_mode_enabled,
    "saved-tensor hooks": lambda: torch._C._autograd._top_saved_tensors_default_hooks(True),
    "a mode of torch's functions": lambda: [
        kind for kind in map(_kind, range(torch._C._len_torch_function_stack())) if kind is not OWN
    ],
    "a dispatch mode": torch._C._len_torch_dispatch_stack,
    "the default dtype": torch.get_default_dtype,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "float32's precision": torch.get_float32_matmul_precision,
    "cuDNN's flags": lambda: (
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    ),
}


def modes() -> dict[str, Any]:
    """Return the current modes, each by the name that a message gives it."""
    current = {name: read() for name, read in MODES.items()}
    return current | {f"autocast on {device}": autocast(device) for device in DEVICES}


def put_back(before: dict[str, Any]) -> None:
    """Set the modes that a forward sets by a call, as they were before it was left in its middle."""
    now = modes()
    torch.set_grad_enabled(before["the grad mode"])
    if now["the default dtype"] != before["the default dtype"]:
        torch.set_default_dtype(before["the default dtype"])
    if now["float32's precision"] != before["float32's precision"]:
        torch.set_float32_matmul_precision(before["float32's precision"])
    if now["deterministic algorithms"] != before["deterministic algorithms"]:
        torch.use_deterministic_algorithms(before["deterministic algorithms"])
    flags = torch.backends.cudnn
    if now["cuDNN's flags"] != before["cuDNN's flags"]:
        flags.enabled, flags.benchmark, flags.deterministic = before["cuDNN's flags"]
    for device in DEVICES:
        if now[f"autocast on {device}"] != (dtype := before[f"autocast on {device}"]):
            torch.set_autocast_enabled(device, dtype is not None)
            if dtype is not None:
                torch.set_autocast_dtype(device, dtype)


def _kind(place: int) -> type:
    return type(torch._C._get_function_stack_at(place))


def autocast(device: str) -> Any:
    """Return the dtype that autocast gives, or None where it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
