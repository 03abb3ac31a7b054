"""Patch: what a patch's file holds, checked; and reading and writing it.

The file is safetensors. Its tensors have the network's own names, so that any program can put them into a
state dict; of a weight of which only some entries train, NAME holds their values and NAME.entries a bit for
each of its numbers. Its metadata holds the format, a JSON header and a SHA-256 over both."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastbn import files
from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.models.families import Spec
from fastbn.models.network import network
from fastbn.patches import header
from fastbn.patches.contents import COUNTER, RUNNING, check_values, dtype_name, shape_name, shape_of
from fastbn.training import checked_file
from fastbn.training.checkpoint import CHECKPOINT, WeightSource, check, split
from fastbn.version import VERSION

PATCH = "fastbn-patch-1"
MOST_BYTES = 1 << 32  # of a patch's file
CHECKPOINTS = ("model", "source", "trains", "entries")  # what a checkpoint's header says of the model itself
BITS = ".entries"  # what follows a weight's name in that of the bits of its entries


@dataclasses.dataclass(frozen=True)
class Patch:
    """The content of a patch.

    tensors: by the network's names: γ, β, running statistics, counters, and whatever else trained; of a
        weight of which only some entries train, those entries' values alone, (k,)
    masks: by a weight's name: which of its entries those are, bool (numel,), row-major
    trains: the names of the parameters that required grad
    network: the class of the network that it was made from
    frozen, sha256: the base, see `digests.lines`; of a file of `fastbn.save(FastBNOnlyResNet)`, which has one
        digest over all of it, `frozen` is empty
    metadata: what the caller of `save` said beside: task, accuracy, licence, …
    """

    tensors: dict[str, Tensor]
    masks: dict[str, Tensor]
    trains: tuple[str, ...]
    network: str
    frozen: dict[str, str]
    sha256: str
    metadata: dict[str, Any]

    @property
    def of_checkpoint(self) -> bool:
        """Return whether the base has one digest and no other, as in a file of a FastBNOnlyResNet."""
        return any(line.count(" ") == 1 for line in self.frozen.values())

    def said(self) -> dict[str, Any]:
        """Return the header."""
        return {
            "fastbn": VERSION,
            "network": self.network,
            "trains": list(self.trains),
            "entries": list(self.masks),
            "frozen": {"sha256": self.sha256, "tensors": self.frozen},
            "metadata": self.metadata,
        }

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, in whole or not at all. Raises MachineError where it can't be written, UsageError
        for values or metadata that no patch has."""
        header.check(self.said(), os.fspath(path))
        if (large := sum(t.nbytes for t in self.tensors.values())) > MOST_BYTES // 2:
            raise UsageError(
                f"a patch of {large:,} bytes is too large; fastbn.freeze the network before it trains"
            )
        for name, t in self.tensors.items():
            check_values(name, t, name in self.trains)
        tensors = {name: t.detach().to("cpu").contiguous().clone() for name, t in self.tensors.items()}
        for name, mask in self.masks.items():
            tensors[name + BITS] = torch.from_numpy(np.packbits(mask.cpu().numpy()))
        checked_file.write(Path(path), tensors, self.said(), PATCH)


def read(path: str | os.PathLike[str], most: int = MOST_BYTES) -> Patch:
    """Read a patch of at most so many bytes, checked. Raises UsageError, one line, for a file that is
    missing, damaged or no patch, or that says or holds what no patch does.

    A file that `fastbn.save` wrote of a FastBNOnlyResNet is one too, and the folder of a run."""
    where = Path(path)
    where = where / CHECKPOINT if files.is_folder(where) else where
    kinds = (PATCH, checked_file.FORMAT)
    kind, tensors, said = checked_file.verified(where, kinds, "a patch", most)
    if kind == checked_file.FORMAT:
        return _of_checkpoint(*checked_file.checkpoint(tensors, said, where), where)
    header.check(said, shown(path))
    frozen: Mapping[str, str] = said["frozen"]["tensors"]
    try:
        masks = {name: _mask(name, tensors, frozen) for name in said["entries"]}
        trains = set(said["trains"])
        for name, t in tensors.items():
            check_values(name, t, name in trains)
        if both := tensors.keys() & frozen.keys() - masks.keys():
            raise UsageError(f"{shown(min(both), 80)} is stored, and of the base too; use another copy")
        if lost := [name for name in said["trains"] if name not in tensors]:
            raise UsageError(f"{shown(lost[0], 80)} is said to train, and is not there; use another copy")
    except UsageError as error:
        raise UsageError(f"{shown(path)}: {error}") from None
    return Patch(
        tensors, masks, tuple(said["trains"]), said["network"], dict(frozen), said["frozen"]["sha256"],
        said["metadata"],
    )  # fmt: skip


def _mask(name: str, tensors: dict[str, Tensor], frozen: Mapping[str, str]) -> Tensor:
    """Return which entries of a weight are stored; takes its bits out of the tensors."""
    bits, values = tensors.pop(name + BITS, None), tensors.get(name)
    shape = shape_of(frozen[name].split()[1]) if name in frozen else None
    if bits is None or values is None or shape is None or bits.dtype != torch.uint8 or bits.dim() != 1:
        raise UsageError(f"{shown(name, 80)} lacks the bits of its entries; use another copy")
    mask = torch.from_numpy(np.unpackbits(bits.numpy())).bool()
    count = math.prod(shape)
    if not count <= len(mask) < count + 8 or values.shape != (int(mask[:count].sum()),):
        raise UsageError(f"{shown(name, 80)} does not have a value for each bit; use another copy")
    return mask[:count]


def _of_checkpoint(tensors: dict[str, Tensor], said: dict[str, Any], where: Path) -> Patch:
    """Return a checkpoint as a patch. Its vectors are flat: the network, made without memory, says what is
    where."""
    spec, source = Spec(**said["model"]), WeightSource(**said["source"])
    trains = set(said["trains"])
    try:
        with torch.device("meta"):
            model = network(spec, "stock")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trains)
        check(model, tensors, source)
    except UsageError as error:
        raise UsageError(f"{shown(where)}: {error}") from None
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    stored, frozen = split(model)
    named: dict[str, dict[str, Tensor]] = {
        "parameters": {name: parameters[name] for name in stored},
        "running": {name: b for name, b in buffers.items() if name.endswith(RUNNING)},
        "batches": {name: b for name, b in buffers.items() if name.endswith(COUNTER)},
    }
    unflattened: dict[str, Tensor] = {}
    for key, like in named.items():
        parts = tensors[key].split([t.numel() for t in like.values()])
        unflattened |= {name: part.view(like[name].shape) for name, part in zip(like, parts, strict=True)}
    lines = {name: f"{dtype_name(t.dtype)} {shape_name(t.shape)}" for name, t in parameters.items()}
    beside = {key: value for key, value in said.items() if key not in CHECKPOINTS}
    return Patch(
        unflattened, {}, tuple(said["trains"]), type(model).__name__, {name: lines[name] for name in frozen},
        source.sha256, beside,
    )  # fmt: skip
