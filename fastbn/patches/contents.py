"""The tensors of a network that belong to its patch, and those that are its frozen base.

A patch holds everything that training may have changed: the parameters that require grad, the norms' own
parameters, and every persistent buffer (running statistics and counters). The base is the rest."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.trainable import NORMS, entries

COUNTER, VARIANCE = "num_batches_tracked", "running_var"
RUNNING = ("running_mean", VARIANCE)
FINITE = (*RUNNING, "weight", "bias")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)  # from the widest to the narrowest
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


@dataclasses.dataclass(frozen=True)
class NetworkParts:
    """A network's tensors by name, themselves and not copies: `stored` go into its patch, `frozen` are the
    base. `masks` (bool, of the parameter's shape): a frozen parameter's entries that train and are stored
    too. `trains`: the names of what requires grad. `order`: all names, parameters first."""

    stored: dict[str, Tensor]
    frozen: dict[str, Tensor]
    masks: dict[str, Tensor]
    trains: list[str]
    order: list[str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return all of them, in the network's order."""
        return {name: (self.stored if name in self.stored else self.frozen)[name] for name in self.order}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and torch.compile, whose names then are
    its own. Raises TypeError for what is no module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"a patch belongs to a torch.nn.Module, got {type(model).__name__}")
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def parts_of(model: nn.Module) -> NetworkParts:
    """Return the tensors of a network. Raises UsageError where they have no contents (meta device, lazy
    modules)."""
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        if t.is_meta or nn.parameter.is_lazy(t):
            raise UsageError(f"{name} has no contents yet (it is on the meta device, or lazy); give it some")
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    owned = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    parameters = dict(model.named_parameters())
    trains = [name for name, p in parameters.items() if p.requires_grad]
    masks = {name: mask for name, mask in entries(model).items() if name in trains}
    whole = {name for name, p in parameters.items() if p.requires_grad or id(p) in owned} - masks.keys()
    stored: dict[str, Tensor] = {name: p.detach() for name, p in parameters.items() if name in whole}
    for name, buffer in model.named_buffers():
        owner, _, key = name.rpartition(".")
        if key not in model.get_submodule(owner)._non_persistent_buffers_set:
            stored[name] = buffer
    frozen = {name: p.detach() for name, p in parameters.items() if name not in whole}
    buffers = [name for name in stored if name not in parameters]
    return NetworkParts(stored, frozen, masks, trains, [*parameters, *buffers])


def check_values(name: str, t: Tensor, trains: bool) -> None:
    """Raise UsageError for values that no training leaves: NaN; an infinite parameter or statistic; a
    variance or a count below 0. A buffer of another kind, an attention mask say, may be infinite."""
    key, called = name.rpartition(".")[2], shown(name, 80)
    if t.dtype not in FLOATS + WHOLE:
        raise UsageError(f"{called} holds {dtype_name(t.dtype)}, which no patch does; cast it first")
    if key == COUNTER and t.dtype != torch.int64:
        raise UsageError(f"{called} counts batches in int64, found {dtype_name(t.dtype)}; use another copy")
    if t.is_floating_point():
        finite = trains or key in FINITE
        if bool((~torch.isfinite(t) if finite else torch.isnan(t)).any()):
            raise UsageError(f"{called} holds NaN or infinite numbers; take a copy from before it diverged")
    if key in (VARIANCE, COUNTER) and bool((t < 0).any()):
        raise UsageError(f"{called} holds a number below 0, which it never is; use another copy")


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as a header says it: float32."""
    return str(dtype).removeprefix("torch.")


def shape_name(shape: torch.Size | tuple[int, ...]) -> str:
    """Return a shape as a header says it: 64x3x7x7; "scalar" of none."""
    return "x".join(map(str, shape)) or "scalar"


def shape_of(said: str) -> tuple[int, ...]:
    """Return the shape that a header says. Raises ValueError."""
    return () if said == "scalar" else tuple(int(part) for part in said.split("x"))
