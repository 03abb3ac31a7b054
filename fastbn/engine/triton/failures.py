"""A kernel that fails in mid-run is told by its operation, its convolution, its shapes, and what to do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torch import Tensor

from fastbn.errors import MachineError, UsageError, is_out_of_memory
from fastbn.graph.regions import Conv

Method = TypeVar("Method", bound=Callable[..., Any])
REMEDY = (
    "--engine stock (or fuse(model, 'stock')) trains without these kernels; to report it: "
    "python -m fastbn.doctor"
)


def explained(method: Method) -> Method:
    """Turn whatever compiling or launching a kernel raises into a MachineError that names the operation.

    An allocator that has no more is passed on: the planner takes the step again by a smaller plan.
    """

    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except (MachineError, UsageError):
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or ["no reason given"])[0][:160]
            what = f"{method.__name__} of {_described(arguments[1:])}"
            raise MachineError(
                f"a Triton kernel failed in {what} ({type(error).__name__}: {reason}); {REMEDY}"
            ) from error

    return call  # type: ignore[return-value]


def _described(arguments: Iterable[Any]) -> str:
    """Return the convolution and the first activation among an operation's arguments."""
    conv, shape = None, ""
    waiting = list(arguments)
    while waiting:
        each = waiting.pop(0)
        if isinstance(each, Conv):
            conv = conv or each
        elif isinstance(each, Tensor) and each.dim() == 4:
            shape = shape or f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}"
        elif isinstance(each, (list, tuple)):
            waiting = [*each, *waiting]
        elif hasattr(each, "ys"):
            waiting = [*each.ys, *waiting]
        elif hasattr(each, "conv") and hasattr(each, "ds"):
            waiting = [each.conv, each.ds, *waiting]
    kernel = "×".join(map(str, conv.kernel)) if conv else ""
    said = [f"{conv.name} ({kernel}, {conv.in_channels} to {conv.channels} channels)"] if conv else []
    return " on ".join([*said, shape] if shape else said) or "an activation"
