"""The parameters that train: chosen by the type of the module that owns them, never by their name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d

from fastbn import draws
from fastbn.choices import TRAIN_MODES, Term, train_terms
from fastbn.errors import UsageError
from fastbn.graph.shortcuts import shortcuts

__all__ = ["NORMS", "TRAIN_MODES", "count", "entries", "freeze", "trainable"]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
AFFINE = {"bn": ("weight", "bias"), "gamma": ("weight",), "beta": ("bias",)}
# on a module of whose weight only some entries train
ENTRIES, HOOK = "trained_entries", "_trained_entries_hook"

Layer = tuple[str, nn.Module, list[nn.Parameter]]  # name, module, those of its parameters that are meant


def freeze(model: nn.Module, train: str = "bn", seed: int = 0) -> nn.Module:
    """Leave `requires_grad` on exactly the parameters that `train` names, and return the same model.

    train: names joined by "+". bn          weight and bias of every norm (BatchNorm, SyncBatchNorm,
        InstanceNorm, GroupNorm, LayerNorm, RMSNorm);
                    gamma: their weights; beta: their biases
        output      weight and bias of the last nn.Linear in module order
        shortcut    the convolutions on the shortcuts of residual blocks, found in a torch.fx trace
        random=K    K weights of each channel of every convolution, drawn by `seed`; the other entries'
                    gradient is zero, and `fit` leaves them alone (weight decay in an optimizer of yours would
                    not)
        all, all-bn (all but the norms' parameters), none
    "@" after a name selects among its layers: `bn@first-9`, `bn@last-9` (in module order), `bn@layer1` (that
    module and what lies in it), `bn@layer*.0.bn1` (a glob pattern over module names). A frozen parameter's
    `.grad` is cleared, or an optimizer that already holds the parameter would still apply it.

    Raises UsageError, the model untouched, for an unknown name, and for one that selects nothing in this
    model."""
    wanted: set[int] = set()
    drawn: dict[int, tuple[nn.Module, Tensor]] = {}
    for term in train_terms(train):
        for name, module, parameters in _layers(model, term):
            if term.number is None:
                wanted.update(map(id, parameters))
            else:
                drawn.update(
                    {id(weight): (module, _entries(name, weight, term.number, seed)) for weight in parameters}
                )
    for module in model.modules():
        if ENTRIES in module._buffers:
            module.__dict__.pop(HOOK).remove()
            del module._buffers[ENTRIES]
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted or id(parameter) in drawn)
        if not parameter.requires_grad:
            parameter.grad = None
    for key, (module, mask) in drawn.items():
        if key not in wanted:
            restrict(module, mask)
    return model


def restrict(module: nn.Module, mask: Tensor) -> None:
    """Train only the entries of the module's weight where `mask` (bool, its shape) is true."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    module.register_buffer(ENTRIES, mask.to(weight.device), persistent=False)
    module.__dict__[HOOK] = weight.register_hook(lambda gradient: gradient * module.get_buffer(ENTRIES))


def entries(model: nn.Module) -> dict[str, Tensor]:
    """Return, by name, the bool masks of the parameters of which only some entries train, of their shapes."""
    masks = {name: module._buffers.get(ENTRIES) for name, module in model.named_modules()}
    return {f"{name}.weight".removeprefix("."): mask for name, mask in masks.items() if mask is not None}


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return (name, parameter) of those that require grad, in `named_parameters` order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def count(model: nn.Module) -> tuple[int, int]:
    """Return (trainable, total) numbers of parameters; one shared between modules counts once."""
    masks = entries(model)
    some = sum(int(masks[name].sum()) if name in masks else p.numel() for name, p in trainable(model))
    return some, sum(p.numel() for p in model.parameters())


def _layers(model: nn.Module, term: Term) -> list[Layer]:
    """Return the layers that a term means."""
    layers = [layer for layer in SELECT[term.name](model) if layer[2]]
    if not layers and term.name != "none":
        raise UsageError(f"train={str(term)!r} {_lacking(model, term)}")
    return layers if term.where is None else _where(model, term, layers)


def _where(model: nn.Module, term: Term, layers: list[Layer]) -> list[Layer]:
    where = term.where or ""
    if counted := re.fullmatch(r"(first|last)-(\d+)", where):
        n = int(counted[2])
        if not 1 <= n <= len(layers):
            raise UsageError(
                f"train={str(term)!r}: {type(model).__name__} has {len(layers)} such layers; ask for 1 … "
                f"{len(layers)}"
            )
        return layers[:n] if counted[1] == "first" else layers[-n:]
    chosen = [
        layer
        for layer in layers
        if fnmatch.fnmatchcase(layer[0], where) or fnmatch.fnmatchcase(layer[0], f"{where}.*")
    ]
    if not chosen:
        names = ", ".join(name or "the model itself" for name, _, _ in layers[:3]) + (
            ", …" if len(layers) > 3 else ""
        )
        raise UsageError(
            f"train={str(term)!r} selects none of the {len(layers)} such layers of {type(model).__name__} "
            f"({names})"
        )
    return chosen


def _owned(
    model: nn.Module, kinds: tuple[str, ...] | None, belongs: Callable[[nn.Module], bool]
) -> list[Layer]:
    """Return every module that belongs, with the parameters it owns itself (of these kinds)."""
    owned = [
        (name, module, dict(module.named_parameters(recurse=False)))
        for name, module in model.named_modules()
        if belongs(module)
    ]
    return [
        (name, module, [p for kind, p in parameters.items() if kinds is None or kind in kinds])
        for name, module, parameters in owned
    ]


def _norms(kind: str) -> Callable[[nn.Module], list[Layer]]:
    return lambda model: _owned(model, AFFINE[kind], lambda module: isinstance(module, NORMS))


def _output(model: nn.Module) -> list[Layer]:
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    # a parametrised weight lies deeper
    return [(name, module, list(module.parameters())) for name, module in linears[-1:]]


def _shortcut(model: nn.Module) -> list[Layer]:
    names = shortcuts(model, NORMS)
    return [
        (name, model.get_submodule(name), list(model.get_submodule(name).parameters(recurse=False)))
        for name in names
    ]


SELECT: dict[str, Callable[[nn.Module], list[Layer]]] = {
    "bn": _norms("bn"),
    "gamma": _norms("gamma"),
    "beta": _norms("beta"),
    "output": _output,
    "shortcut": _shortcut,
    "random": lambda model: _owned(
        model, ("weight",), lambda module: isinstance(module, nn.modules.conv._ConvNd)
    ),
    "all": lambda model: _owned(model, None, lambda module: True),
    "all-bn": lambda model: _owned(model, None, lambda module: not isinstance(module, NORMS)),
    "none": lambda model: [],
}


def _lacking(model: nn.Module, term: Term) -> str:
    """Return what a term needs that the model has not."""
    kind = type(model).__name__
    if term.name in AFFINE:
        norms = sum(isinstance(module, NORMS) for module in model.modules())
        lacks = (
            f"{norms} norm layers, none with such a parameter (affine=False?)" if norms else "no norm layer"
        )
        return f"needs norm layers with {' or '.join(AFFINE[term.name])}, and {kind} has {lacks}"
    needs = {
        "output": "an nn.Linear",
        "shortcut": "a residual block with a convolution on its shortcut",
        "random": "a convolution",
    }
    return (
        f"needs {needs.get(term.name, 'a parameter')}, and {kind} has none; choose another of "
        f"{', '.join(TRAIN_MODES)}"
    )


def _entries(name: str, weight: nn.Parameter, k: int, seed: int) -> Tensor:
    """Return a bool mask of the weight's shape with k entries of each of its output channels, drawn by (seed,
    the layer's name)."""
    channels, fan_in = weight.shape[0], weight[0].numel()
    if k > fan_in:
        raise UsageError(
            f"train=random={k}: a channel of {name or 'the layer'} has {fan_in} weights; ask for at most "
            f"{fan_in}"
        )
    keys = draws.raw(seed, f"{name}.weight/random").random_raw(channels * fan_in).reshape(channels, fan_in)
    order = np.argsort(keys, axis=1, kind="stable")
    mask = torch.zeros(channels, fan_in, dtype=torch.bool)
    mask.scatter_(1, torch.from_numpy(order[:, :k].astype(np.int64)), True)
    return mask.view(weight.shape)
