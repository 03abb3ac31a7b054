"""Tell which Python values a trace may depend on: those compared by identity, those by their
contents, and those that hide their state."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, enum.Enum, np.generic,
    torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
)  # fmt: skip
CLOSED = torch.jit.ScriptModule  # no attributes of Python's hold its tensors: it is called as it is
SIMPLE = {type(None), bool, int, float, str}  # most of a module's attributes
NAMED = (
    type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType, np.ufunc, torch._ops.OpOverloadPacket, torch._ops.OpOverload,
)  # fmt: skip
CONTAINERS = (list, tuple, set, frozenset, dict, collections.deque)
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()
DEPTH = 8  # of containers in containers that are followed


class Opaque(Exception):
    """A value's state cannot be compared; the message names what it is."""


class Same:
    """A value that equals only itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def constant(value: Any) -> bool:
    """Return whether a value can never change, so that its identity says all of it."""
    if type(value) in SIMPLE:
        return True
    if isinstance(value, (tuple, frozenset)):
        return type(value) in (tuple, frozenset, torch.Size) and all(map(constant, value))
    if isinstance(value, types.FunctionType):
        return not _closed_over(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        frozen: bool = type(value).__dataclass_params__.frozen  # type: ignore[attr-defined]
        return frozen and plain(value) and all(map(constant, vars(value).values()))
    return value is MISSING or isinstance(value, (*PLAIN, *NAMED))


def fingerprint(value: Any, depth: int = 0) -> Any:
    """Return what is equal for two values exactly if Python code can't tell them apart. Raises Opaque
    where that is not known."""
    if depth > DEPTH:
        raise Opaque("a value that is nested too deeply")
    inner = functools.partial(fingerprint, depth=depth + 1)
    if isinstance(value, PLAIN):
        return type(value), repr(value) if isinstance(value, (float, complex, slice, np.generic)) else value
    if isinstance(value, types.FunctionType) and _closed_over(value):
        raise Opaque(f"a function that holds {_closed_over(value)}")
    if value is MISSING or isinstance(value, (*NAMED, nn.Module)):
        return Same(value)
    if isinstance(value, types.MethodType):
        return inner(value.__func__), inner(value.__self__)
    if isinstance(value, functools.partial):
        return inner(value.func), inner(value.args), inner(value.keywords)
    if isinstance(value, dict):
        return (
            type(value),
            tuple((inner(key), inner(item)) for key, item in value.items()),
            _state(value, inner),
        )
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(map(inner, value))
    if isinstance(value, CONTAINERS):
        return type(value), tuple(map(inner, value)), _state(value, inner)
    if plain(value) or isinstance(value, types.SimpleNamespace):
        return type(value), _state(value, inner)
    raise Opaque("a tensor in a container" if isinstance(value, Tensor) else f"a {type(value).__name__}")


def copied(value: Any, exchange: Callable[[nn.Module], nn.Module]) -> Any:
    """Return a copy that shares nothing that can change, modules exchanged. For values that have a
    fingerprint."""
    if isinstance(value, nn.Module):
        return exchange(value)
    if constant(value):
        return value
    inner = functools.partial(copied, exchange=exchange)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, inner(value.__self__))
    if isinstance(value, functools.partial):
        return functools.partial(inner(value.func), *inner(value.args), **inner(value.keywords))
    return mapped(value, inner)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container or a plain object of the same class, each thing in it changed. Its __init__ does
    not run."""
    kind: Any = type(value)
    if isinstance(value, tuple):
        items = [change(item) for item in value]
        return kind._make(items) if hasattr(kind, "_fields") else kind(items)
    made: Any = object.__new__(kind) if plain(value) else kind.__new__(kind)
    if isinstance(value, dict):
        base: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
        if isinstance(value, collections.defaultdict):
            made.default_factory = value.default_factory
        for key, item in base.items(value):
            base.__setitem__(made, key, change(item))
    elif isinstance(value, (set, frozenset)):
        made = kind(change(item) for item in value)
    elif isinstance(value, list):
        list.extend(made, [change(item) for item in value])
    elif isinstance(value, collections.deque):
        made = kind([change(item) for item in value], value.maxlen)
    for name in _slots(kind):
        if hasattr(value, name):
            object.__setattr__(made, name, change(getattr(value, name)))
    if hasattr(value, "__dict__"):
        vars(made).update({name: change(item) for name, item in vars(value).items()})
    return made


def plain(value: Any) -> bool:
    """Return whether all of an object's state lies in its attributes, where it can be read."""
    kind = type(value)
    simple = kind.__reduce__ is object.__reduce__ and kind.__module__ not in (
        "builtins",
        "itertools",
        "weakref",
        "threading",
    )
    return simple and kind.__new__ is object.__new__ and (hasattr(value, "__dict__") or bool(_slots(kind)))


def _slots(kind: type) -> list[str]:
    named = [vars(k).get("__slots__", ()) for k in kind.__mro__ if k.__module__ != "builtins"]
    names = [name for slots in named for name in ([slots] if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _state(value: Any, inner: Callable[[Any], Any]) -> Any:
    attributes = {name: getattr(value, name, MISSING) for name in _slots(type(value))} | getattr(
        value, "__dict__", {}
    )
    return tuple((name, inner(item)) for name, item in attributes.items())


def _closed_over(function: types.FunctionType) -> str:
    """Name what a function's closure holds that its trace would fix."""
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not yet filled
            continue
        if isinstance(content, (nn.Module, Tensor)):
            return f"a {type(content).__name__}"
    return ""
