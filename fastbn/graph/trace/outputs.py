"""Make a traced forward's result of its tensors at each call, of the class that it is: a data
class, a dictionary of somebody's own."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, fx

from fastbn.graph.trace.values import PLAIN, mapped, plain

UNWRITTEN = (np.generic, enum.Enum)  # which the code that fx writes has no names for


class Unformed(Exception):
    """A result that can't be made again."""


class Slot:
    """The place of a tensor in a result."""

    def __init__(self, number: int):
        self.number = number


def formed(tracer: fx.Tracer, value: Any) -> Any:
    """Return the argument of an output node. Raises Unformed for a result that can't be made again."""
    if isinstance(value, (fx.Proxy, Tensor)) or (
        isinstance(value, PLAIN) and not isinstance(value, UNWRITTEN)
    ):
        return tracer.create_arg(value)
    if type(value) in (list, tuple):
        return type(value)([formed(tracer, item) for item in value])
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {key: formed(tracer, item) for key, item in value.items()}
    places: dict[int, tuple[Slot, Any]] = {}

    def taken(item: Any) -> Any:
        if isinstance(item, (fx.Proxy, Tensor)):
            return places.setdefault(id(item), (Slot(len(places)), item))[0]
        return item if isinstance(item, PLAIN) else _inside(item, taken)

    template = value if isinstance(value, PLAIN) else _inside(value, taken)
    args = tuple(tracer.create_arg(item) for _, item in places.values())
    places.clear()  # a cycle through `taken` would keep it
    return tracer.create_node("call_function", maker(template), args, {})


def maker(template: Any) -> Callable[..., Any]:
    """Return a function that makes such a result of its tensors."""

    def make(*tensors: Any) -> Any:
        def put(item: Any) -> Any:
            if isinstance(item, Slot):
                return tensors[item.number]
            return item if isinstance(item, PLAIN) else mapped(item, put)

        return put(template)

    make.__name__ = make.__qualname__ = type(template).__name__
    return make


def leaves(value: Any) -> list[Any]:
    """Return what stands in a result, in its order. Raises Unformed for a result that can't be made again."""
    items: list[Any] = []

    def note(item: Any) -> Any:
        if isinstance(item, (Tensor, *PLAIN)):
            items.append(item)
            return item
        return _inside(item, note)

    note(value)
    return items


def _inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, (list, tuple, dict)) or plain(value):
        return mapped(value, change)
    raise Unformed(f"returns a {type(value).__name__}")
