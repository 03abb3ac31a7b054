"""The activation functions' formulas as tensor code, torch's own operations: z of n, and the gradient of n.

A function whose derivative has two values also tells where it has the first of them, `open`, so that a bit an
element may be saved; a NaN is open."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastbn.graph.activations import IDENTITY, Function

aten = torch.ops.aten
SIXTH = 0.1666666716337204  # float32's 1/6, which torch multiplies by in float64 too


@dataclasses.dataclass(frozen=True)
class Formulas:
    """`forward(n, slope)` may write over n; `backward(dz, n, slope)` is the gradient. `inside` and `outside`
    are the derivative's two values, where there are two; None stands for the slope."""

    forward: Callable[[Tensor, float], Tensor]
    backward: Callable[[Tensor, Tensor, float], Tensor]
    open: Callable[[Tensor], Tensor] | None = None
    inside: float = 1.0
    outside: float | None = 0.0


def _above(n: Tensor) -> Tensor:
    return (n <= 0).logical_not_()


def _between(low: float, high: float) -> Callable[[Tensor], Tensor]:
    return lambda n: ((n <= low) | (n >= high)).logical_not_()


FORMULAS = {
    "relu": Formulas(lambda n, _: n.relu_(), lambda dz, n, _: aten.threshold_backward(dz, n, 0), _above),
    "relu6": Formulas(
        lambda n, _: F.relu6(n, True), lambda dz, n, _: aten.hardtanh_backward(dz, n, 0, 6), _between(0, 6)
    ),
    "hardsigmoid": Formulas(
        lambda n, _: F.hardsigmoid(n, True),
        lambda dz, n, _: aten.hardsigmoid_backward(dz, n),
        _between(-3, 3),
        SIXTH,
    ),
    "leaky_relu": Formulas(
        lambda n, slope: F.leaky_relu(n, slope),
        lambda dz, n, slope: aten.leaky_relu_backward(dz, n, slope, False),
        _above,
        1.0,
        None,
    ),
    "silu": Formulas(lambda n, _: F.silu(n, True), lambda dz, n, _: aten.silu_backward(dz, n)),
    "hardswish": Formulas(lambda n, _: F.hardswish(n, True), lambda dz, n, _: aten.hardswish_backward(dz, n)),
    "mish": Formulas(lambda n, _: F.mish(n, True), lambda dz, n, _: aten.mish_backward(dz, n)),
    "gelu": Formulas(lambda n, _: F.gelu(n), lambda dz, n, _: aten.gelu_backward(dz, n)),
    "gelu_tanh": Formulas(
        lambda n, _: F.gelu(n, approximate="tanh"),
        lambda dz, n, _: aten.gelu_backward(dz, n, approximate="tanh"),
    ),
}


def forward(function: Function, n: Tensor) -> Tensor:
    """Return z, which may be written over n."""
    return FORMULAS[function.name].forward(n, function.slope) if function != IDENTITY else n


def backward(function: Function, dz: Tensor, n: Tensor) -> Tensor:
    """Return the gradient of n, in fresh storage."""
    return FORMULAS[function.name].backward(dz, n, function.slope)


def kept(function: Function, n: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what of n the derivative needs: whether it is open, one byte an element, else n itself in this
    dtype."""
    opened = FORMULAS[function.name].open
    return n.to(dtype, copy=True) if opened is None else opened(n)
