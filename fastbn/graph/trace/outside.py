"""Find what the code of a forward reads beside its module: globals, closures, defaults,
attributes of classes. None of it can be watched, so it is looked up by the names in the code."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fastbn.graph.trace.values import CLOSED, MISSING, PLAIN, Opaque, Same, constant, fingerprint

LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "fastbn"}  # whose own state is no forward's
MOST = 200  # parts of a value, above which it is no setting that a forward reads


class Cells(Mapping[str, Any]):
    """A function's closure as a mapping: the values that it holds, by name."""

    def __init__(self, function: types.FunctionType):
        self.cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))

    def __getitem__(self, name: str) -> Any:
        try:
            return self.cells[name].cell_contents
        except ValueError:  # not yet filled
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)


@dataclasses.dataclass
class OutsidePlace:
    """The place where a value lies, and the way to put another there."""

    mapping: Mapping[str, Any]
    name: str
    title: str  # in a sentence
    put: Callable[[Any], None]

    def value(self) -> Any:
        return self.mapping.get(self.name, MISSING)


class Outside:
    """The values that the forwards of these classes read outside their modules, as they are now."""

    def __init__(self, functions: list[Any], kinds: list[type]):
        self.places: list[OutsidePlace] = []
        self._kinds = {k: None for kind in kinds for k in kind.__mro__ if not _library(k)}
        self._seen: set[Any] = set()
        for function in functions:
            self._walk(function)
        self.before = [print_of(place.value()) for place in self.places]
        self._kept = [_contents(place.value()) for place in self.places]

    def changed(self) -> str:
        """Name what is not as it was, "" where all is."""
        for place, before in zip(self.places, self.before, strict=True):
            if print_of(place.value()) != before:
                return place.title
        return ""

    def put_back(self) -> None:
        """Make everything what it was: the same objects, with the contents that they had."""
        for place, before, kept in zip(self.places, self.before, self._kept, strict=True):
            if print_of(place.value()) != before:
                value = _refilled(kept)
                if place.value() is not value:
                    place.put(value)

    def _walk(self, function: Any) -> None:
        function = getattr(function, "__func__", getattr(function, "fget", function))
        if isinstance(wrapped := getattr(function, "__wrapped__", None), types.FunctionType):
            self._walk(wrapped)
        if not isinstance(function, types.FunctionType) or function in self._seen or _library(function):
            return
        self._seen.add(function)
        names = set(_names(function.__code__))
        cells = Cells(function)
        for name, cell in cells.cells.items():
            self._take(
                cells,
                name,
                f"{name} of its closure",
                functools.partial(setattr, cell, "cell_contents"),
                names,
            )
        code, defaults = function.__code__, function.__defaults__ or ()
        named = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        for held in (dict(zip(named, defaults, strict=True)), function.__kwdefaults__ or {}):
            for name in held:
                self._take(held, name, f"the default {name}", lambda value: None, names)
        for name in names & function.__globals__.keys():
            put = _setter(function.__globals__, name)
            self._take(function.__globals__, name, f"the global {name}", put, names)
        for kind in self._kinds:
            self._attributes(kind, names | {"forward"})

    def _take(
        self,
        mapping: Mapping[str, Any],
        name: str,
        title: str,
        put: Callable[[Any], None],
        names: set[str],
    ) -> None:
        value = mapping.get(name, MISSING)
        if isinstance(value, types.FunctionType):
            self._walk(value)
        if isinstance(value, type) and not _library(value):
            self._attributes(value, names)
        if isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in LIBRARIES:
            for inner in names & vars(value).keys():
                self._place(vars(value), inner, f"{name}.{inner}", _setter(vars(value), inner))
        self._place(mapping, name, title, put)

    def _attributes(self, kind: type, names: set[str]) -> None:
        for name in names & vars(kind).keys():
            value = vars(kind)[name]
            self._walk(value)
            self._place(vars(kind), name, f"{kind.__name__}.{name}", functools.partial(setattr, kind, name))

    def _place(self, mapping: Mapping[str, Any], name: str, title: str, put: Callable[[Any], None]) -> None:
        key = id(mapping) if not isinstance(mapping, Cells) else id(mapping.cells[name]), name
        if key not in self._seen and print_of(mapping.get(name, MISSING)) is not None:
            self._seen.add(key)
            self.places.append(OutsidePlace(mapping, name, title, put))


def of_model(modules: list[nn.Module], forward: Callable[..., Any]) -> Outside:
    """Return what the forwards of a model and of its submodules read outside the model."""
    kinds: list[Any] = list(dict.fromkeys(map(type, modules)))
    replaced = [vars(module)["forward"] for module in modules if "forward" in vars(module)]
    kinds = [kind for kind in kinds if not issubclass(kind, CLOSED)]
    return Outside([forward, *(kind.forward for kind in kinds), *replaced], kinds)


def print_of(value: Any) -> Any:
    """Return a print by which an outside value is known to be still what it was; None where none can tell."""
    if isinstance(value, (Tensor, nn.Module)) or (constant(value) and not isinstance(value, PLAIN)):
        return Same(value)
    try:
        return fingerprint(value) if _small(value) else None
    except Opaque:
        return None


def _small(value: Any) -> bool:
    waiting, count = [value], 0
    while waiting and count <= MOST:
        item = waiting.pop()
        count += 1
        if isinstance(item, dict):
            waiting += list(itertools.islice(item.values(), MOST))
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += list(itertools.islice(item, MOST))
    return count <= MOST


def _contents(value: Any) -> Any:
    """Return what a value holds, and what that holds, beside each: enough to put it all back in place."""
    if isinstance(value, dict):
        return value, [(key, _contents(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, collections.deque)):
        return value, [_contents(item) for item in value]
    if isinstance(value, set):
        return value, set(value)
    if not constant(value) and hasattr(value, "__dict__") and not isinstance(value, (Tensor, nn.Module)):
        return value, _contents(vars(value))
    return value, None


def _refilled(kept: Any) -> Any:
    """Return the same object, holding again what it held."""
    value, held = kept
    if isinstance(value, dict):
        items = [(key, _refilled(item)) for key, item in held]
        value.clear()
        value.update(items)
    elif isinstance(value, (list, collections.deque, tuple)):
        items = [_refilled(item) for item in held]
        if not isinstance(value, tuple):
            value.clear()
            value.extend(items)
    elif isinstance(value, set):
        value.clear()
        value.update(held)
    elif held is not None:
        _refilled(held)
    return value


def _setter(mapping: dict[str, Any], name: str) -> Callable[[Any], None]:
    return functools.partial(mapping.__setitem__, name)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _library(thing: Any) -> bool:
    return str(getattr(thing, "__module__", None)).partition(".")[0] in LIBRARIES
