"""The context that steers the forwards of a piece of code, each part of it set for a `with` block."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from fastbn.engine.interface import ProcessGroup
from fastbn.engine.recomputation import Recompute


@dataclasses.dataclass(frozen=True)
class ForwardContext:
    """The settings by which the forwards inside run."""

    # what gradients are stored in beside activations in float16; None: both as the input, or autocast, has it
    gradients: torch.dtype | None = None
    group: ProcessGroup | None = None  # whose batches BatchNorm takes as one
    recompute: Recompute | None = None  # what forwards save; None: all that the backward reads
    recorded: bool = True  # whether executors may record a region's walks


_PLAIN = ForwardContext()
_CURRENT: contextvars.ContextVar[ForwardContext] = contextvars.ContextVar("forward", default=_PLAIN)


def current() -> ForwardContext:
    """Return the context that this code runs in."""
    return _CURRENT.get()


@contextlib.contextmanager
def _inside(**parts: Any) -> Iterator[None]:
    token = _CURRENT.set(dataclasses.replace(_CURRENT.get(), **parts))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def mixed(gradients: torch.dtype = torch.bfloat16) -> contextlib.AbstractContextManager[None]:
    """Inside, regions store activations in float16, which BatchNorm keeps in range, and gradients in
    bfloat16, which needs no loss scaling: no product mixes the two where weights are frozen. What goes in and
    comes out is float32. The Triton engine's alone."""
    return _inside(gradients=gradients)


def synchronised(group: ProcessGroup | None) -> contextlib.AbstractContextManager[None]:
    """Inside, BatchNorms that take the batch's statistics take those of the group's batches. What would run
    stock, by this process's statistics alone, raises UsageError instead."""
    return _inside(group=group)


def recomputing(policy: Recompute | None) -> contextlib.AbstractContextManager[None]:
    """Inside, forwards save as the policy says. Results and gradients keep their bits."""
    return _inside(recompute=policy)


def unrecorded() -> contextlib.AbstractContextManager[None]:
    """Inside, regions walk and record nothing: the enclosing executor records them together with what
    surrounds them."""
    return _inside(recorded=False)
