"""Guards keep what a trace read of Python, and say at each call whether it is still so."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastbn.graph.trace.outside import print_of
from fastbn.graph.trace.values import MISSING, Opaque, constant, fingerprint

IS_TENSOR = "a tensor"  # which is looked up at each call: that there is one is all that a trace fixes


class Guards:
    """Attributes by the dictionary that they lie in. Those that can't change are compared by identity, in
    one pass of C's."""

    def __init__(self) -> None:
        self._seen: set[tuple[int, str]] = set()
        self._mappings: list[dict[str, Any]] = []
        self._names: list[str] = []
        self._values: list[Any] = []
        self._paths: list[str] = []
        self.readers: dict[tuple[str, str], list[str]] = {}  # by what was read first: the paths of all
        # the last: what can't change, so that it need not be looked into
        self._outside: list[tuple[str, Mapping[str, Any], str, str, Any, Any]] = []
        self._deep: list[tuple[str, Mapping[str, Any], str, Any]] = []  # whose contents are compared
        # tensors of which Python read a size, a dtype, a device
        self._facts: list[tuple[str, Mapping[str, Any], str, Any]] = []

    def add(self, path: str, mapping: Mapping[str, Any], name: str) -> None:
        """Expect what the mapping now holds under this name. path: the module that it was read of. Raises
        Opaque."""
        if (id(mapping), name) in self._seen:
            return
        value = mapping.get(name, MISSING)
        if isinstance(mapping, dict) and (isinstance(value, Tensor) or constant(value)):
            self._mappings.append(mapping)
            self._names.append(name)
            self._values.append(value)
            self._paths.append(path)
        else:
            self._deep.append((path, mapping, name, _print(value)))
        self._seen.add((id(mapping), name))

    def add_outside(
        self, paths: list[str], mapping: Mapping[str, Any], name: str, title: str, expected: Any
    ) -> None:
        """Expect a value that is no module's: a global, a closure's. paths: of the modules that read it."""
        value = mapping.get(name, MISSING)
        fixed = value if constant(value) or isinstance(value, (Tensor, nn.Module)) else self
        self._outside.append((paths[0], mapping, name, title, expected, fixed))
        self.readers[paths[0], title] = paths

    def add_facts(self, path: str, mapping: Mapping[str, Any], name: str) -> None:
        """Expect a tensor of the size, dtype and device that it now has."""
        if (id(mapping), f"{name}'s") not in self._seen:
            self._facts.append((path, mapping, name, _facts(mapping[name])))
            self._seen.add((id(mapping), f"{name}'s"))

    def changed(self) -> tuple[str, str] | None:
        """Return the module's path and the name of an attribute that is not what it was, or None."""
        now = map(dict.get, self._mappings, self._names, itertools.repeat(MISSING))
        if not all(map(operator.is_, now, self._values)):
            for i, (mapping, name, value) in enumerate(
                zip(self._mappings, self._names, self._values, strict=True)
            ):
                current = mapping.get(name, MISSING)
                if current is not value and not _equal(current, _print(value)):
                    return self._paths[i], name
                self._values[i] = current
        for path, held, name, expected in self._deep:
            if not _equal(held.get(name, MISSING), expected):
                return path, name
        for path, held, name, title, expected, fixed in self._outside:
            value = held.get(name, MISSING)
            if value is not fixed and print_of(value) != expected:
                return path, title
        for path, held, name, expected in self._facts:
            if _facts(held.get(name)) != expected:
                return path, name
        return None


def _print(value: Any) -> Any:
    return IS_TENSOR if isinstance(value, Tensor) else fingerprint(value)


def _facts(tensor: Any) -> Any:
    return isinstance(tensor, Tensor) and (tensor.shape, tensor.dtype, tensor.device, tensor.requires_grad)


def _equal(value: Any, expected: Any) -> bool:
    try:
        return bool(_print(value) == expected)
    except Opaque:
        return False
