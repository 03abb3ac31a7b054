"""Which parameters train: chosen by the type of the module that owns them, never by their name."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # BatchNorm1d/2d/3d, SyncBatchNorm, InstanceNorm1d/2d/3d

from fastbn.choices import TRAIN_MODES, train_names
from fastbn.errors import UsageError

__all__ = ["NORMS", "TRAIN_MODES", "count", "freeze", "trainable"]

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
AFFINE = {"bn": ("weight", "bias"), "gamma": ("weight",), "beta": ("bias",)}


def freeze(model: nn.Module, train: str = "bn") -> nn.Module:
    """Leave `requires_grad` on exactly the parameters that `train` names, and return the same model.

    train: names joined by "+". `bn`: weight and bias of every norm (BatchNorm, SyncBatchNorm, InstanceNorm, GroupNorm, LayerNorm,
    RMSNorm); `gamma`: their weights; `beta`: their biases; `output`: weight and bias of the last nn.Linear in module order; `all`; `none`.
    A frozen parameter's `.grad` is cleared, or an optimizer that already holds the parameter would still apply it.

    Raises UsageError for an unknown name, and for one that selects nothing in this model.
    """
    wanted = {id(parameter) for name in train_names(train) for parameter in _select(model, name)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
        if not parameter.requires_grad:
            parameter.grad = None
    return model


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """(name, parameter) of those that require grad, in `named_parameters` order."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def count(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) numbers of parameters; one shared between modules counts once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def _select(model: nn.Module, name: str) -> list[nn.Parameter]:
    if name == "none":
        return []
    if name == "all":
        return list(model.parameters())
    if name == "output":
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        if not linears:
            raise UsageError(f"train='output' needs an nn.Linear, and {type(model).__name__} has none; choose another of {TRAIN_MODES}")
        return list(linears[-1].parameters())  # all it owns: a parametrised weight has another name
    norms = [dict(module.named_parameters(recurse=False)) for module in model.modules() if isinstance(module, NORMS)]
    chosen = [owned[kind] for owned in norms for kind in AFFINE[name] if kind in owned]
    if not chosen:
        found = f"{len(norms)} norm layers, none with such a parameter (affine=False?)" if norms else "no norm layer"
        raise UsageError(f"train={name!r} needs norm layers with {' or '.join(AFFINE[name])}, and {type(model).__name__} has {found}")
    return chosen
