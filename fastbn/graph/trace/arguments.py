"""Take a call's arguments apart: the tensors, which a program reads, and the form that they
stand in, which a trace fixes."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastbn.graph.trace.values import PLAIN

TENSOR = "tensor"
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Unlisted(Exception):
    """An argument is neither a tensor nor a plain value nor a container of these."""


@dataclasses.dataclass(frozen=True)
class Form:
    """The arguments of a call, but for its tensors. It may key a dictionary; 1, 1.0 and True differ in it.

    floats: whether numbers with a point are read at each call, as tensors are, instead of being fixed.
    """

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    floats: bool = False

    @staticmethod
    def of(signature: inspect.Signature, constants: dict[str, Any]) -> Form:
        """Return the form of a call with these arguments, and tensors for the others that have no default."""
        args, kwargs, by_name = [], [], False
        for parameter in signature.parameters.values():
            if parameter.kind in VARIABLE:
                continue
            given = parameter.name in constants and constants[parameter.name] is not parameter.default
            if not given and parameter.default is not inspect.Parameter.empty:
                by_name = True
                continue
            node = _taken(constants[parameter.name], [], False) if given else TENSOR
            if by_name or parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                kwargs.append((parameter.name, node))
            else:
                args.append(node)
        return Form(tuple(args), tuple(kwargs))

    def filled(self, tensor: Callable[[], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments, with tensors from here, one after the other."""
        args = tuple([_put(node, tensor) for node in self.args])
        return args, {name: _put(node, tensor) for name, node in self.kwargs}


ONE = Form((TENSOR,), ())


def taken(args: tuple[Any, ...], kwargs: dict[str, Any], floats: bool = False) -> tuple[Form, list[Any]]:
    """Return a call's form and its tensors, in order. Raises Unlisted for an argument that is neither a
    tensor nor a plain value nor a container of these."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return ONE, [args[0]]
    tensors: list[Any] = []
    form = Form(
        tuple([_taken(value, tensors, floats) for value in args]),
        tuple([(name, _taken(value, tensors, floats)) for name, value in kwargs.items()]),
        floats,
    )
    return form, tensors


def _taken(value: Any, tensors: list[Any], floats: bool) -> Any:
    if isinstance(value, Tensor) or (floats and type(value) is float):
        tensors.append(value)
        return TENSOR
    if isinstance(value, PLAIN) and not isinstance(value, slice):
        return type(value), repr(value) if isinstance(value, (float, complex)) else value, _Held(value)
    if type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return type(value), tuple([_taken(item, tensors, floats) for item in value])
    if type(value) is dict and all(isinstance(key, (str, int)) for key in value):
        return dict, tuple(value), tuple([_taken(item, tensors, floats) for item in value.values()]), None
    raise Unlisted(f"a {type(value).__name__}")


def _put(node: Any, tensor: Callable[[], Any]) -> Any:
    if node is TENSOR:
        return tensor()
    if len(node) == 3:
        return node[2].value
    if len(node) == 4:
        return dict(zip(node[1], [_put(item, tensor) for item in node[2]], strict=True))
    items = [_put(item, tensor) for item in node[1]]
    return node[0]._make(items) if hasattr(node[0], "_fields") else node[0](items)


class _Held:
    """A value beside what it is compared by; all are equal."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held)

    def __hash__(self) -> int:
        return 0
