"""fuse(model): the model's own forward, its matched regions carried out by an engine."""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastbn.engine import select
from fastbn.engine.module_state import PARAMETERS
from fastbn.engine.native import build
from fastbn.engine.native.engine import STORAGE
from fastbn.engine.region import refuse_stock, storage_dtype
from fastbn.engine.weight_cache import WeightCache
from fastbn.graph.read import read, trace
from fastbn.graph.regions import Graph

HOOKS = operator.attrgetter("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TRAINING = operator.attrgetter("training")
SIMPLE = (type(None), bool, int, float, str)  # arguments that a trace may fix


def fuse(model: nn.Module, engine: str = "auto", exact: bool = False) -> nn.Module:
    """Gives a model the engine, in place, and returns it: wherever a convolution with a frozen weight meets a
    BatchNorm, an addition, a ReLU, they run as one. Parameters, buffers, names and results stay what they
    are.

    engine: 'auto' (by the input's device and dtype, at the first forward), 'native', 'reference', or 'stock',
    which undoes fuse.
    exact: without Winograd, whose transforms cost a few of float32's last bits, and make one NaN a tile of
    NaNs.

    What Python computes while the network is traced (its own attributes, random numbers, branches) is fixed
    until a submodule, a mode or a requires_grad changes. A frozen weight written through `.data` is not
    noticed: write it under torch.no_grad(). Raises UsageError for an unknown engine, MachineError for one
    that this machine can't run, TypeError for a model that torch.fx can't trace."""
    select.check(engine)
    if engine == "stock":
        vars(model).pop("forward", None)
        return model
    fused = Fused(model, engine, exact)
    trace(model, fused.defaults())
    model.forward = fused
    return model


def fused_forward(model: nn.Module) -> Fused | None:
    """The fused forward that fuse() gave this model, or None."""
    found = vars(model).get("forward")
    return found if isinstance(found, Fused) else None


class Fused:
    """A model's fused forward. It reads the model anew when what it read no longer holds."""

    def __init__(self, model: nn.Module, engine: str, exact: bool = False):
        self.model, self.engine, self.exact = model, engine, exact
        self.why = ""  # why the engine was chosen, known after the first forward
        self._forget()

    def _forget(self) -> None:
        self._programs: dict[Any, tuple[Graph, fx.GraphModule]] = {}
        # by engine; the programs for training and for evaluation share them
        self._packs: dict[str, WeightCache] = {}
        self._structure: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self._submodules: list[nn.Module] = []
        self._inner: list[nn.Module] = []
        self._convs: list[nn.Module] = []
        self._warned: set[str] = set()

    # deepcopy and pickle carry the model and the choice, not what was read
    def __getstate__(self) -> dict[str, Any]:
        return {"model": self.model, "engine": self.engine, "exact": self.exact}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @torch._dynamo.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        if torch._C._get_tracing_state() is not None or any(isinstance(value, fx.Proxy) for value in values):
            return self._stock(args, kwargs)
        self._look()
        why = self._why_stock()
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        tensors = [value for value in bound.arguments.values() if isinstance(value, Tensor)]
        constants = {name: value for name, value in bound.arguments.items() if not isinstance(value, Tensor)}
        if not tensors or not all(isinstance(value, SIMPLE) for value in constants.values()):
            why = why or "its forward was called with something other than tensors and plain values"
        if why:
            refuse_stock(why, self.model.modules())
            if why not in self._warned:
                self._warned.add(why)
                warnings.warn(
                    f"fastbn runs {type(self.model).__name__} stock in this call: {why}", stacklevel=2
                )
            return self._stock(args, kwargs)
        like = next((x for x in tensors if x.is_floating_point()), next(self.model.parameters(), tensors[0]))
        if self.engine == "auto" and tensors[0].device.type == "xla":
            return self._stock(args, kwargs)
        _, program = self._program(tensors[0].device, storage_dtype(like), constants)
        return program(*bound.arguments.values())

    def program(
        self, device: torch.device, dtype: torch.dtype, constants: dict[str, Any]
    ) -> tuple[Graph, fx.GraphModule]:
        """The graph and its program for the model as it now is, on this device."""
        self._look()
        return self._program(device, dtype, constants)

    def _program(
        self, device: torch.device, dtype: torch.dtype, constants: dict[str, Any]
    ) -> tuple[Graph, fx.GraphModule]:
        engine, self.why = select.choose(self.engine, device, dtype, self.exact)
        assert engine is not None
        if engine is select.REFERENCE and self.engine == "auto" and dtype in STORAGE and build.failed():
            select.warn_of_reference(self.why)
        own = itertools.chain.from_iterable(map(dict.values, map(PARAMETERS, self._convs)))
        state = (
            engine,
            tuple(sorted(constants.items())),
            tuple(map(TRAINING, self._inner)),
            tuple([p is not None and p.requires_grad for p in own]),
        )
        if state not in self._programs:
            self._programs[state] = read(
                self.model, constants, engine, self._packs.setdefault(engine.name, {})
            )
        return self._programs[state]

    def defaults(self) -> dict[str, Any]:
        """Every argument of the model's forward that has a default, fixed at it."""
        parameters = self._signature.parameters.values()
        return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    @functools.cached_property
    def _signature(self) -> inspect.Signature:
        signature = inspect.signature(type(self.model).forward)
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def _stock(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return type(self.model).forward(self.model, *args, **kwargs)

    def _look(self) -> None:
        """Forgets what was read if a submodule has been exchanged, added or taken away since."""
        if self._structure and all(tuple(children.values()) == seen for children, seen in self._structure):
            return
        self._forget()
        for module in self.model.modules():
            self._submodules += [child for child in module._modules.values() if child is not None]
            if module._modules:
                self._structure.append((module._modules, tuple(module._modules.values())))
            # what the trace went into
            if module._modules or not type(module).__module__.startswith("torch.nn"):
                self._inner.append(module)
            if isinstance(module, nn.modules.conv._ConvNd):
                self._convs.append(module)

    def _why_stock(self) -> str | None:
        """What an engine would pass over: hooks on what it fuses."""
        if nn.modules.module._has_any_global_hook():
            return "a global module hook is registered"
        if any(map(any, map(HOOKS, self._submodules))):
            name = next(name for name, module in self.model.named_modules() if name and any(HOOKS(module)))
            return f"{name} has a hook"
        return None
