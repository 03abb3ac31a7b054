"""Refuses, in words, a network's result that is not logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastbn.errors import UsageError


def logits_of(result: Any, classes: int = 0) -> Tensor:
    """Return a network's result if it is a tensor (N, classes or more). Raises UsageError otherwise, and
    says what to pass instead."""
    if not isinstance(result, Tensor):
        raise UsageError(
            f"training takes logits (N, classes), and the network returns a {type(result).__name__}; pass a "
            "module whose forward returns "
            f"one tensor of it, for example model(x){_example(result)}"
        )
    if result.dim() != 2 or result.shape[1] < classes:
        raise UsageError(
            f"the data has {classes} classes, and the network returns a tensor of shape "
            f"{tuple(result.shape)}, not (N, {classes}); "
            f"give it a head of {classes} outputs"
        )
    return result


def _example(result: Any) -> str:
    """Return how the first tensor is reached."""
    if isinstance(result, dict):
        return f"[{next(iter(result))!r}]" if result else ""
    if fields := getattr(result, "_fields", None) or getattr(result, "__dataclass_fields__", None):
        return f".{next(iter(fields))}"
    return "[0]"
