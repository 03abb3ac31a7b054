"""Find out what a subclass of BatchNorm2d computes by trying it: batch norm, then an activation function, or
something else.

A class is not trusted by its name: a copy runs on a few numbers beside nn.BatchNorm2d and the function, in
training and in evaluation, with its momentum and with none, and must give the same outputs, gradients and
buffers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.graph import activations, pointwise
from fastbn.graph.activations import IDENTITY, Function
from fastbn.graph.trace import values

AFFINE, STATISTICS = {"weight", "bias"}, {"running_mean", "running_var", "num_batches_tracked"}
READ_AT_EACH_CALL = {"training", "momentum", "eps", "num_features", "affine", "track_running_stats"}
READ_AT_EACH_CALL |= {"forward", "in_channels", "out_channels", "kernel_size", "output_padding", "transposed"}
TOLERANCE = 1e-9  # of float64


def function_of(norm: nn.BatchNorm2d) -> Function | None:
    """Return the activation function that this BatchNorm's forward ends with (identity for nn.BatchNorm2d's
    own), or None if it does anything else."""
    if "forward" in vars(norm):
        return None
    if type(norm) is nn.BatchNorm2d:
        return IDENTITY
    extra_state = [
        dict(norm.named_parameters()).keys() - AFFINE,
        dict(norm.named_buffers()).keys() - STATISTICS,
    ]
    if any(extra_state):  # what it does with these, no batch norm does
        return None
    held = [child for child in norm.children() if not is_identity(child)]
    function = activations.of_module(held[0]) if len(held) == 1 else IDENTITY
    if function is None or len(held) > 1:
        return None
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            cases = [(training, momentum) for training in (True, False) for momentum in (norm.momentum, None)]
            return function if all(_behaves(norm, function, *case) for case in cases) else None
        except Exception:  # whatever its forward does with these numbers, it is not a batch norm
            return None


def is_identity(module: nn.Module) -> bool:
    """Return whether a module returns what it is given, in training too."""
    return "forward" not in vars(module) and (
        type(module) is nn.Identity or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p == 0)
    )


def settings(module: nn.Module) -> list[str]:
    """Return the attributes of a module that decide what it computes, and that no engine reads at each
    call."""
    return [name for name in vars(module) if not name.startswith("_") and name not in READ_AT_EACH_CALL]


def _state(module: nn.Module) -> Any:
    return [
        (name, values.fingerprint(vars(part)[name]))
        for part in module.modules()
        for name in vars(part)
        if name not in ("_parameters", "_buffers", "_modules") and not name.endswith("_hooks")
    ]


def _behaves(norm: nn.BatchNorm2d, function: Function, training: bool, momentum: float | None) -> bool:
    """Return whether a call of a copy does what batch norm and the function do."""
    channels = norm.num_features
    plain = (
        nn.BatchNorm2d(channels, norm.eps, momentum, norm.affine, norm.track_running_stats)
        .double()
        .train(training)
    )
    tried = copy.deepcopy(norm).to("cpu").double().train(training)
    tried.momentum = momentum
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            ours, theirs = getattr(tried, name), getattr(plain, name)
            if (ours is None) != (theirs is None):
                return False
            if ours is not None:
                value = torch.randint(1, 5, ours.shape, generator=draw) + 0.5 * (
                    name != "num_batches_tracked"
                )
                ours.copy_(value)
                theirs.copy_(value)
    before = _state(tried)
    x = 3 * torch.randn(3, channels, 2, 3, generator=draw, dtype=torch.float64)
    dz = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    actual = _call(tried, lambda z: z, x, dz)
    if _state(tried) != before:
        return False
    return _same(actual, _call(plain, lambda n: pointwise.forward(function, n.clone()), x, dz))


def _call(
    module: nn.BatchNorm2d, last: Callable[[Tensor], Tensor], x: Tensor, dz: Tensor
) -> list[Tensor | None]:
    """Return the output, every gradient, and every buffer afterwards."""
    given = x.clone().requires_grad_()
    module.zero_grad()
    module.requires_grad_()
    z = last(module(given + 0))
    z.backward(dz)
    gradients = [None if p is None else p.grad for p in (given, module.weight, module.bias)]
    return [z.detach(), *gradients, module.running_mean, module.running_var, module.num_batches_tracked]


def _same(actual: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    def near(a: Tensor | None, b: Tensor | None) -> bool:
        if a is None or b is None:
            return a is b
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), TOLERANCE, TOLERANCE)

    return all(map(near, actual, expected))
