"""A model's own forward, and the trace of it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from fastbn.graph.trace.arguments import Form
from fastbn.graph.trace.tracer import Traced, Tracer, Untraceable


def trace(model: nn.Module, constants: dict[str, Any]) -> Traced:
    """Trace the model's own forward, called with these constants and with tensors for what else it needs, and
    return its operations. Raises Untraceable where no trace would mean the same."""
    forward = forward_of(model)
    try:
        return Tracer(model, forward, {}).run(Form.of(signature(forward), constants).filled)
    except Untraceable as error:
        text = (
            f"{type(model).__name__} has no torch.fx trace that means the same ({error}); take the part "
            "of it that has one, for example"
        )
        raise Untraceable(f"{text} model.backbone", error.guards) from None


def forward_of(model: nn.Module) -> Callable[..., Any]:
    """Return the model's own forward as a function of the model: its class's, or one that was put in that
    one's place, but for fuse's."""
    forward = vars(model).get("forward")
    forward = getattr(forward, "before", forward)  # fuse's
    if forward is None:
        return type(model).forward
    return (
        forward.__func__
        if isinstance(forward, types.MethodType) and forward.__self__ is model
        else lambda _, *args, **kwargs: forward(*args, **kwargs)
    )


def signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Return a forward's signature, without self."""
    whole = inspect.signature(forward)
    return whole.replace(parameters=list(whole.parameters.values())[1:])
