"""Copy a model for a trial: the copy shares the parameters and has its own buffers and
attributes."""

from __future__ import annotations

import collections
import copy
import types
from typing import Any

import torch
from torch import nn

from fastbn.graph.trace.values import CLOSED, CONTAINERS, SIMPLE, constant, mapped, plain

HELD = ("_parameters", "_modules", "_buffers")  # each copied in a way of its own
EMPTY = {dict, collections.OrderedDict, set, list}  # as are most of a module's, those of its hooks


def copy_for_trial(model: nn.Module) -> nn.Module:
    """Return a copy whose forward leaves the model as it was. A module that can't be copied stands in it
    itself."""
    made: dict[nn.Module, nn.Module] = {}
    buffers: dict[int, torch.Tensor] = {}
    for module in model.modules():
        if module in made:  # inside a closed one
            continue
        if isinstance(module, CLOSED):
            made |= {inner: inner for inner in module.modules()}
            made[module] = copy.deepcopy(module)
            continue
        try:
            made[module] = object.__new__(type(module))
        except TypeError:
            made[module] = module
    for module, twin in made.items():
        if twin is not module and not isinstance(module, CLOSED):
            attributes = _attributes(module, made)
            attributes["_parameters"] = dict(module._parameters)
            attributes["_modules"] = {
                name: None if child is None else made[child] for name, child in module._modules.items()
            }
            for b in module._buffers.values():
                if b is not None and id(b) not in buffers:
                    buffers[id(b)] = b.detach().clone()
            attributes["_buffers"] = {
                name: None if b is None else buffers[id(b)] for name, b in module._buffers.items()
            }
            object.__getattribute__(twin, "__dict__").update(attributes)
    return made[model]


def _attributes(module: nn.Module, made: dict[nn.Module, nn.Module]) -> dict[str, Any]:
    """Return a copy of a module's attributes: what may change is copied, but for those that are HELD."""
    attributes: dict[str, Any] = {}
    for name, value in vars(module).items():
        kind = type(value)
        if kind in SIMPLE:
            attributes[name] = value
        elif kind in EMPTY and not value:
            attributes[name] = kind()
        elif (kind is tuple or kind is list) and SIMPLE.issuperset(map(type, value)):
            attributes[name] = kind(value)
        elif name not in HELD and not hasattr(value, "traced_through"):
            attributes[name] = _own(value, made)
    return attributes


def _own(value: Any, made: dict[nn.Module, nn.Module]) -> Any:
    if isinstance(value, nn.Module):
        return made.get(value, value)
    if isinstance(value, torch.Tensor):
        return value if value.requires_grad else value.detach().clone()
    if type(value) in SIMPLE or constant(value) or isinstance(value, types.FunctionType):
        return value
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _own(value.__self__, made))
    try:
        if isinstance(value, CONTAINERS) or plain(value):
            return mapped(value, lambda item: _own(item, made))
        return copy.deepcopy(value)  # a generator of random numbers
    except Exception:  # nothing that can be copied; what it is only its class knows
        return value
