"""A proxy stands for a tensor while a forward is traced; a recorder makes a node of every operation."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property

from fastbn.graph.aliasing import IN_PLACE
from fastbn.graph.trace import modes

# what is asked of a tensor of the model's own is answered at once, and guarded
AHEAD = frozenset(
    [
        "dim",
        "ndimension",
        "size",
        "numel",
        "nelement",
        "element_size",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "stride",
    ]
)
# the files that are no user's: torch's, this folder's, and code without a file
INSIDE = (str(torch.__path__[0]), __file__.rpartition("/")[0], "<")
# where every Function's apply looks at its arguments, by whatever name it was called
APPLY = inspect.getfile(torch._functorch.utils)


class RecordingProxy(fx.Proxy):
    """One that records `x += y` as what it is; fx's own makes `x = x + y` of it, which differs where x has
    another name."""

    tracer: Any  # of tracer.py

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # which isinstance reads
        if sys._getframe(1).f_code.co_filename == APPLY:
            self.tracer.refuse("calls the apply of a torch.autograd.Function")
        return type(self)

    def __hash__(self) -> int:
        if not sys._getframe(1).f_code.co_filename.startswith(INSIDE):
            self.tracer.refuse("looks something up by a tensor or its size")
        return object.__hash__(self)


for operation in IN_PLACE:
    setattr(
        RecordingProxy,
        f"__{operation.__name__}__",
        lambda self, other, operation=operation: self.tracer.create_proxy(
            "call_function", operation, (self, other), {}
        ),
    )


class OperationRecorder(TorchFunctionMode):
    """A mode that makes a node of every operation. Operations that read no proxy become nodes too, so that
    what is drawn or allocated is so at each call."""

    def __init__(self, tracer: Any):
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        if any(isinstance(item, fx.Proxy) for item in leaves):
            return function(*args, **kwargs)
        tensors = [item for item in leaves if isinstance(item, Tensor)]
        name = getattr(function, "__name__", "")
        if tensors and name != "__get__" and name not in AHEAD:
            kind = "call_method" if is_tensor_method_or_property(function) else "call_function"
            return self._tracer.create_proxy(kind, name if kind == "call_method" else function, args, kwargs)
        for tensor in tensors:
            self._tracer.shadows.fact(tensor)
        made = function(*args, **kwargs)
        if not tensors and isinstance(made, Tensor):
            return self._tracer.create_proxy("call_function", function, args, kwargs)
        return made


modes.OWN = OperationRecorder
