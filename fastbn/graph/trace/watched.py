"""Watch a model while its forward is traced: a shadow of each module, which tells what Python
reads of it and writes to it.

A shadow is an object of a subclass of the module's own class, with a copy of its attributes. The model itself
is only read, so a trace leaves no mark on it; and no class that others use is patched, so other threads feel
nothing."""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn

from fastbn.graph import activations
from fastbn.graph.behaviour import settings
from fastbn.graph.trace.guards import Guards
from fastbn.graph.trace.values import CLOSED, Opaque, constant, copied, fingerprint

INSIDE = (str(torch.__path__[0]), __file__.rpartition("/")[0])  # what may read a shadow's dictionary
OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
PASSED = (nn.Identity, nn.modules.dropout._DropoutNd)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.RMSNorm)


class Watcher(Protocol):
    """The listener that a shadow tells what Python reads of it and writes to it."""

    def call(self, shadow: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...
    def tensor(self, path: str, value: Tensor) -> Any: ...
    def refuse(self, why: str) -> None: ...


class Watched:
    """The first base of a shadow's class."""

    shadows: Shadows

    def __init_subclass__(cls, **options: Any) -> None:
        """Leave out what the module's class does with its subclasses: a registry must not learn of this
        one."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.shadows.watcher.call(self, args, kwargs)  # type: ignore[arg-type]

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "__dict__" and not sys._getframe(1).f_code.co_filename.startswith(INSIDE):
            object.__getattribute__(self, "shadows").watcher.refuse("reads self.__dict__")
        if name in OWN or name == "shadows" or name.startswith("__"):
            return value
        return object.__getattribute__(self, "shadows").read(self, name, value)

    def __getattr__(self, name: str) -> Any:
        try:
            value = super().__getattr__(name)  # type: ignore[misc]
        except AttributeError:
            self.shadows.missed(self, name)
            raise
        return self.shadows.read(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        self.shadows.watcher.refuse(f"sets self.{name}")

    def __delattr__(self, name: str) -> None:
        self.shadows.watcher.refuse(f"deletes self.{name}")


class _Stand(nn.Module):
    """Stands for a module of which no shadow can be made."""


class Shadows:
    """The shadows of a model's modules, and what has been read of them."""

    def __init__(self, model: nn.Module, watcher: Watcher):
        self.watcher, self.guards = watcher, Guards()
        self.paths: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        opened = [module for module in self.paths if not isinstance(module, CLOSED)]
        places = [(module, where) for module in opened for where in ("_parameters", "_buffers")]
        self.tensors = {
            id(t): (module, where, name)
            for module, where in places
            for name, t in vars(module)[where].items()
        }
        self._kinds: dict[type, type] = {}
        self._given: dict[type, set[str]] = {}  # the names that such a class is made with
        self._of = {id(module): self._shadow(module) for module in self.paths}
        self._module = {id(self._of[id(module)]): module for module in self.paths}
        for module in self.paths:
            vars(self._of[id(module)])["_modules"] = {
                n: None if m is None else self._of[id(m)] for n, m in module._modules.items()
            }
        # copies that were handed out, and what they were like
        self._handed: dict[tuple[int, str], tuple[Any, Any]] = {}

    def _shadow(self, module: nn.Module) -> nn.Module:
        try:
            made: Any = object.__new__(self._kind(type(module)))
        except TypeError:  # a class with a layout, or a will, of its own
            made = object.__new__(self._kind(_Stand))
        object.__getattribute__(made, "__dict__").update(vars(module))
        if isinstance(module, CLOSED):
            vars(made).update(_parameters={}, _buffers={})
            return made
        for name in ("_parameters", "_buffers"):
            vars(made)[name] = dict(vars(module)[name])
        # a fused part is traced as the part that it is
        if hasattr(vars(made).get("forward"), "traced_through"):
            del vars(made)["forward"]
        return made

    def _kind(self, kind: type) -> type:
        if kind not in self._kinds:
            self._kinds[kind] = type(kind)(
                kind.__name__, (Watched, kind), {"shadows": self, "__module__": kind.__module__}
            )
            self._given[kind] = set(vars(self._kinds[kind]))
        return self._kinds[kind]

    def of(self, module: nn.Module) -> nn.Module:
        """Return a module's shadow. Raises Opaque for a module that is not the model's."""
        if id(module) in self._module:
            return module
        if id(module) not in self._of:
            raise Opaque(f"a {type(module).__name__} that is not among its submodules")
        return self._of[id(module)]

    def module(self, shadow: Any) -> nn.Module:
        """Return the module that a shadow stands for."""
        return self._module[id(shadow)]

    def path(self, shadow: Any) -> str:
        return self.paths[self._module[id(shadow)]]

    def read(self, shadow: Any, name: str, value: Any) -> Any:
        """Return what Python shall see in place of an attribute's value."""
        if isinstance(value, Watched):
            return value
        module = self._module.get(id(shadow))
        if module is None:
            return value
        if name in vars(shadow):
            return self._shown(module, vars(module), name, value)
        for where in ("_parameters", "_buffers"):
            if name in vars(shadow)[where]:
                return self._shown(module, vars(module)[where], name, value)
        for kind in type(module).__mro__:
            if name in vars(kind):
                if not isinstance(value, Tensor) and not hasattr(type(vars(kind)[name]), "__get__"):
                    self._expect(module, vars(module), name)
                    return self._shown(module, vars(kind), name, value)
                break
        return value

    def missed(self, shadow: Any, name: str) -> None:
        """Note that an attribute was asked for that is not there."""
        module = self._module.get(id(shadow))
        if module is not None and name not in module._modules:
            self._expect(module, vars(module), name)

    def _shown(self, module: nn.Module, mapping: Mapping[str, Any], name: str, value: Any) -> Any:
        self._expect(module, mapping, name)
        if isinstance(value, Tensor):
            path = self.paths[module]
            return self.watcher.tensor(f"{path}.{name}" if path else name, value)
        if constant(value):
            return value
        key = id(mapping), name
        if key not in self._handed:
            try:
                made = copied(value, self.of)
                self._handed[key] = made, fingerprint(made)
            except Opaque as opaque:
                self.watcher.refuse(f"reads self.{name}, {opaque}, which may change unseen")
        return self._handed[key][0]

    def _expect(self, module: nn.Module, mapping: Mapping[str, Any], name: str) -> None:
        try:
            self.guards.add(self.paths[module], mapping, name)
        except Opaque as opaque:
            self.watcher.refuse(f"reads self.{name}, {opaque}, which may change unseen")

    def fact(self, tensor: Tensor) -> None:
        """Note that a size, a dtype or a device of a tensor was read."""
        if id(tensor) in self.tensors:
            module, where, name = self.tensors[id(tensor)]
            self.guards.add_facts(self.paths[module], vars(module)[where], name)

    def written_past(self, module: nn.Module) -> str:
        """Name an attribute of a module's shadow that was written past its __setattr__, and take it back."""
        if isinstance(module, CLOSED):
            return ""
        shadow, original = vars(self._of[id(module)]), vars(module)
        pairs = [(shadow, original)] + [
            (shadow[place], original[place]) for place in ("_parameters", "_buffers")
        ]
        for shadowed, expected in pairs:
            for name in shadowed.keys() | expected.keys():
                same = shadowed.get(name) is expected.get(name)
                if not same and name not in OWN and not (name == "forward" and "forward" not in shadowed):
                    if name in expected:
                        shadowed[name] = expected[name]
                    else:
                        del shadowed[name]
                    return str(name)
        return ""

    def written_to_class(self) -> str:
        """Name an attribute that was set on a shadow's class."""
        for kind, made in self._kinds.items():
            for name in vars(made).keys() - self._given[kind]:
                return f"{kind.__name__}.{name}"
        return ""

    def rewritten(self) -> str:
        """Name an attribute whose copy has been changed since it was handed out."""
        for key, (made, before) in self._handed.items():
            try:
                same = fingerprint(made) == before
            except Opaque:
                same = False
            if not same:
                return key[1]
        return ""

    def take_back(self) -> None:
        """Forget the copies that were handed out, and with them how they were changed."""
        self._handed.clear()


def expect_leaf(guards: Guards, paths: dict[nn.Module, str], module: nn.Module) -> None:
    """Expect of a module that is not traced what a match reads of it: its own forward, its settings."""
    for inner in module.modules():
        named = activations.of_module(inner) is not None
        if isinstance(inner, (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, *PASSED)) or named:
            names = ["forward"] if isinstance(inner, PASSED) else ["forward", *settings(inner)]
            for name in names:
                with contextlib.suppress(Opaque):  # such a module does not match
                    guards.add(paths[inner], vars(inner), name)


def leaf(module: nn.Module) -> bool:
    """Return whether a module is called as it is, at each call, instead of being traced."""
    kind = type(module)
    of_torch = kind.__module__.startswith(
        ("torch.nn", "torch.ao.nn", "torch.jit", "torch._dynamo")
    ) and not isinstance(module, nn.Sequential)
    calls_itself = kind.__call__ is not nn.Module.__call__ and not isinstance(module, fx.GraphModule)
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return of_torch or isinstance(module, NORMS) or calls_itself or compiled or not _traceable_forward(module)


def _traceable_forward(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return (
        forward is None
        or hasattr(forward, "traced_through")
        or (isinstance(forward, types.MethodType) and forward.__self__ is module)
    )
