"""A fused forward asks of the call that it is in by whom it was called, with what, and what an engine would
pass over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.engine.program.readings import Reading

CALL = nn.Module._call_impl.__code__
FRAMES = 8  # at most, between a module's call and its forward


def copy_that_called(fused: Any) -> nn.Module | None:
    """Return the copy of the fused forward's model by which it was called, if it was one that shares the
    model's attributes (a DataParallel replica). To be called in the forward's own frame."""
    frame = sys._getframe(2)
    for _ in range(FRAMES):
        if frame.f_code is CALL:
            caller = frame.f_locals["self"]
            return caller if caller is not fused.model and vars(caller).get("forward") is fused else None
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def imaginary(tensors: list[Tensor]) -> bool:
    """Return whether tensors have shapes and no contents: on "meta", or fake."""
    if any(t.is_meta or type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__ for t in tensors):
        return True
    fake = torch._C._TorchDispatchModeKey.FAKE
    return torch._C._len_torch_dispatch_stack() > 0 and torch._C._get_dispatch_mode(fake) is not None


def passed_over(reading: Reading) -> str:
    """Name what an engine would pass over, hooks on what it fuses and torch.func's transforms; "" where there
    is nothing."""
    if nn.modules.module._has_any_global_hook():
        return "a global module hook is registered"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    name = reading.hooked()
    return f"{name} has a hook" if name else ""


def unbound(make: Callable[[nn.Module], Any]) -> Callable[..., Any]:
    """Return a fused forward as a function of the model, for wrappers that bind one anew (accelerate's), also
    to the model's copies. make: makes the fused forward of one of them."""

    def fused_of(model: nn.Module) -> Any:
        fused = vars(model).get("_fused_forward")
        if getattr(fused, "model", None) is not model:
            fused = vars(model)["_fused_forward"] = make(model)
        return fused

    def forward(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return fused_of(model)(*args, **kwargs)

    forward.fused_of = fused_of  # type: ignore[attr-defined]
    return forward
