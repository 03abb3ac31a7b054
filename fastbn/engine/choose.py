"""Which engine carries out a graph on a device, and why. Nothing here falls back in silence."""

from __future__ import annotations

import torch

from fastbn.choices import ENGINES, one_of
from fastbn.engine.operations import Engine
from fastbn.engine.reference import Reference
from fastbn.errors import MachineError


def check(name: str) -> str:
    """The name, if it is an engine's; raises UsageError otherwise and MachineError for one that cannot run here."""
    if one_of("engine", name, ENGINES) in ("triton", "native"):
        raise MachineError(f"engine {name!r} is not part of this version of fastbn; ask for 'auto', 'reference' or 'stock'")
    return name


def choose(name: str, device: torch.device) -> tuple[Engine | None, str]:
    """The engine for this device (None is stock: the model's own forward by autograd), and why it was chosen."""
    if check(name) == "stock":
        return None, "asked for"
    if name == "auto":
        return Reference(), f"the engine of this version on {device.type}"
    return Reference(), "asked for"
