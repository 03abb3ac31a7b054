"""Copies a model for a trial: parameters shared, buffers and attributes its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastbn.engine.values import Opaque, copied, fingerprint


def copy_for_trial(model: nn.Module) -> nn.Module:
    """A copy whose forward leaves the model as it was. A module that can't be copied stands in it itself."""
    made: dict[nn.Module, nn.Module] = {}
    buffers: dict[int, torch.Tensor] = {}
    for module in model.modules():
        try:
            made[module] = object.__new__(type(module))
        except TypeError:
            made[module] = module
    for module, copy in made.items():
        if copy is not module:
            attributes = {
                name: _own(value, made)
                for name, value in vars(module).items()
                if not hasattr(value, "traced_through")
            }
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
            object.__getattribute__(copy, "__dict__").update(attributes)
    return made[model]


def _own(value: Any, made: dict[nn.Module, nn.Module]) -> Any:
    if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone() if not value.requires_grad else value
    try:
        fingerprint(value)
        return copied(value, lambda module: made.get(module, module))
    except Opaque:
        return value
