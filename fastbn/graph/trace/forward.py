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
    """The model's operations, its own forward called with these constants, and tensors for what else it
    needs. Raises Untraceable where no trace would mean the same."""
    own = forward_of(model)
    try:
        return Tracer(model, own, {}).run(Form.of(signature(own), constants).filled)
    except Untraceable as error:
        text = (
            f"{type(model).__name__} has no torch.fx trace that means the same ({error}); take the part "
            "of it that has one, for example"
        )
        raise Untraceable(f"{text} model.backbone", error.guards) from None


def forward_of(model: nn.Module) -> Callable[..., Any]:
    """The model's own forward as a function of the model: its class's, or one that was put in that one's
    place, but for fuse's."""
    own = vars(model).get("forward")
    own = getattr(own, "before", own)  # fuse's
    if own is None:
        return type(model).forward
    return (
        own.__func__
        if isinstance(own, types.MethodType) and own.__self__ is model
        else lambda _, *args, **kwargs: own(*args, **kwargs)
    )


def signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Of a forward, without self."""
    found = inspect.signature(forward)
    return found.replace(parameters=list(found.parameters.values())[1:])
