"""The activation functions that a join may end with, each by its name.

To add one: a row here, its formulas in pointwise.py (the reference engine) and in kernels/cpu (the native
one: a value of Function in structs.h, its formulas in rows/activation.h), and a case in
tests/graph/test_activations.py. An engine that lacks one says so, and the region ends before it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn


@dataclasses.dataclass(frozen=True)
class Function:
    """An activation function: its name, and the slope below zero of one that has a parameter."""

    name: str
    slope: float = 0.0

    @property
    def bit(self) -> bool:
        """Return whether its derivative has two values, so that one bit an element tells it."""
        return self.name in ("relu", "relu6", "hardsigmoid", "leaky_relu")


IDENTITY, RELU = Function("identity"), Function("relu")


@dataclasses.dataclass(frozen=True)
class Spelling:
    """The ways in which models write an activation function. `read` makes it of a module's, or a call's, own
    parameter: by default it has none."""

    name: str
    module: type[nn.Module]
    calls: tuple[Callable[..., Any], ...]
    methods: tuple[str, ...] = ()
    parameter: str = ""  # of the module and of the call
    default: Any = None
    read: Callable[[str, Any], Function | None] = lambda name, parameter: Function(name)


def _leaky(name: str, slope: Any) -> Function | None:
    return Function(name, float(slope)) if isinstance(slope, (int, float)) else None


def _gelu(name: str, approximate: Any) -> Function | None:
    return {"none": Function(name), "tanh": Function("gelu_tanh")}.get(approximate)


SPELLINGS = (
    Spelling("relu", nn.ReLU, (F.relu, F.relu_, torch.relu, torch.relu_), ("relu", "relu_")),
    Spelling("relu6", nn.ReLU6, (F.relu6,)),
    Spelling("silu", nn.SiLU, (F.silu,)),
    Spelling("hardswish", nn.Hardswish, (F.hardswish,)),
    Spelling("hardsigmoid", nn.Hardsigmoid, (F.hardsigmoid,)),
    Spelling("mish", nn.Mish, (F.mish,)),
    Spelling("leaky_relu", nn.LeakyReLU, (F.leaky_relu, F.leaky_relu_), (), "negative_slope", 0.01, _leaky),
    Spelling("gelu", nn.GELU, (F.gelu,), (), "approximate", "none", _gelu),
)
NAMES = frozenset({"identity", "gelu_tanh", *(spelling.name for spelling in SPELLINGS)})


def of_module(module: nn.Module) -> Function | None:
    """Return the activation function that a module computes, or None where it computes anything else."""
    for spelling in SPELLINGS:
        if type(module) is spelling.module and "forward" not in vars(module):
            return spelling.read(spelling.name, getattr(module, spelling.parameter or "training"))
    return None


def of_node(node: fx.Node, modules: dict[str, nn.Module]) -> Function | None:
    """Return the activation function that a node of a trace computes of its first argument, or None where it
    computes anything else."""
    if node.op == "call_module":
        return of_module(modules[str(node.target)]) if len(node.args) == 1 and not node.kwargs else None
    for spelling in SPELLINGS:
        called = node.op == "call_function" and node.target in spelling.calls
        if called or (node.op == "call_method" and node.target in spelling.methods):
            second = node.args[1] if len(node.args) > 1 and spelling.parameter else spelling.default
            return spelling.read(spelling.name, node.kwargs.get(spelling.parameter, second))
    return None
