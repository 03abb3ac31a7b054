"""A model as a few KB: what was trained, the running statistics, and where the frozen weights come from.

Everything that trains or belongs to a BatchNorm is stored, flat. The rest is frozen, and has a source: the
seed it was drawn from, the file it was read from, or, where neither gives back its bits, the checkpoint
itself."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastbn.errors import UsageError
from fastbn.models.families import Spec
from fastbn.models.init import fingerprint
from fastbn.models.init_names import REGENERABLE
from fastbn.models.network import Network, network
from fastbn.trainable import NORMS, entries, restrict, trainable
from fastbn.training import checked_file

CHECKPOINT = "checkpoint.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Where the frozen parameters come from: 'seed', 'file' or 'stored', and the SHA-256 that they must
    have."""

    kind: str
    sha256: str
    file: str | None = None
    file_sha256: str | None = None


def split(model: nn.Module) -> tuple[list[str], list[str]]:
    """(stored, frozen) names of the parameters: stored are those that train and every norm layer's own."""
    owned = {
        id(p)
        for module in model.modules()
        if isinstance(module, NORMS)
        for p in module.parameters(recurse=False)
    }
    stored = [name for name, p in model.named_parameters() if p.requires_grad or id(p) in owned]
    chosen = set(stored)
    return stored, [name for name, _ in model.named_parameters() if name not in chosen]


def source_of(model: Network) -> WeightSource:
    """Finds out whether the model's frozen parameters are the ones that its spec (and file) give; draws
    them again to see."""
    frozen = split(model)[1]
    sha256 = fingerprint(model, frozen)
    if model.spec.weight_init in REGENERABLE or model.weights_file is not None:
        again = network(model.spec, "stock", model.weights_file)
        if again.weights_sha256 == model.weights_sha256 and fingerprint(again, frozen) == sha256:
            if model.weights_file is None:
                return WeightSource("seed", sha256)
            return WeightSource("file", sha256, os.path.abspath(model.weights_file), model.weights_sha256)
    return WeightSource("stored", sha256)


def tensors_of(model: nn.Module, source: WeightSource) -> dict[str, Tensor]:
    """What a checkpoint stores of a model: `parameters`, `running` and `batches`, each flat; `frozen` if
    nothing else gives it; `entries`, a bit a weight, if only some entries of parameters train."""
    stored, frozen = split(model)
    parameters = dict(model.named_parameters())
    tensors = {"parameters": _flat([parameters[name] for name in stored])}
    if source.kind == "stored":
        tensors["frozen"] = _flat([parameters[name] for name in frozen])
    for name, buffers in _buffers(model).items():
        tensors[name] = _flat(buffers)
    if masks := entries(model):
        tensors["entries"] = torch.from_numpy(np.packbits(_flat(list(masks.values())).cpu().numpy()))
    return tensors


@torch.no_grad()
def restore(model: nn.Module, tensors: dict[str, Tensor], source: WeightSource) -> None:
    """Puts back what `tensors_of` took, in place. Raises UsageError where lengths or the frozen weights'
    SHA-256 differ."""
    stored, frozen = split(model)
    parameters = dict(model.named_parameters())
    parts: dict[str, list[Tensor]] = {"parameters": [parameters[name] for name in stored], **_buffers(model)}
    if source.kind == "stored":
        parts["frozen"] = [parameters[name] for name in frozen]
    for name, targets in parts.items():
        length = sum(t.numel() for t in targets)
        if name not in tensors or tensors[name].shape != (length,):
            found = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise UsageError(
                f"the checkpoint is of another network: {name} should hold {length:,} numbers, found {found}"
            )
    for name, targets in parts.items():
        for target, values in zip(targets, tensors[name].split([t.numel() for t in targets]), strict=True):
            target.copy_(values.view(target.shape))
    if fingerprint(model, frozen) != source.sha256:
        raise UsageError(
            f"the frozen weights from the {source.kind} have another SHA-256 than those that the checkpoint "
            "was trained with"
        )


def save(model: Network, path: str | os.PathLike[str], **extra: Any) -> None:
    """Writes a FastBNOnlyResNet, or another network made from a Spec, to one small file that `fastbn.load`
    brings back.

    Raises TypeError for another kind of model, MachineError where the file can't be written.
    """
    if not isinstance(model, Network):
        raise TypeError(
            f"save needs a FastBNOnlyResNet, got {type(model).__name__}; of another network store its "
            "state_dict()"
        )
    source = source_of(model)
    checked_file.write(Path(path), tensors_of(model, source), header_of(model, source) | extra)


def header_of(model: Network, source: WeightSource) -> dict[str, Any]:
    """What a checkpoint says of the model itself."""
    trains = [name for name, _ in trainable(model)]
    some = {"entries": list(masks)} if (masks := entries(model)) else {}
    return {"model": model.spec.said(), "source": dataclasses.asdict(source), "trains": trains, **some}


def load(
    run: str | os.PathLike[str], engine: str = "auto", weights: str | os.PathLike[str] | None = None
) -> Network:
    """The model of a run's folder, or of a file that `save` wrote, on the CPU, with what trained requiring
    grad.

    weights: where the frozen weights' file lies now, if it has moved.
    Raises UsageError for a missing, damaged or foreign file, and where the frozen weights' SHA-256 differs.
    """
    path = Path(run)
    tensors, header = checked_file.read(path / CHECKPOINT if path.is_dir() else path)
    return build(tensors, header, engine, weights)


def build(
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    engine: str,
    weights: str | os.PathLike[str] | None = None,
) -> Network:
    """The model that a checkpoint's tensors and header describe."""
    spec, source = Spec(**header["model"]), WeightSource(**header["source"])
    file = weights if weights is not None else source.file
    if source.kind == "file" and file is not None and not Path(file).exists():
        raise UsageError(
            f"the frozen weights came from {file}, where there is no file; say where it lies now: weights=, "
            "or --weights"
        )
    model = network(spec, engine, file if source.kind == "file" else None)
    trains = set(header["trains"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trains)
    restore(model, tensors, source)
    if "entries" in tensors:
        _restrict(
            model, header["entries"], torch.from_numpy(np.unpackbits(tensors["entries"].numpy())).bool()
        )
    return model


def _restrict(model: nn.Module, names: list[str], bits: Tensor) -> None:
    """Of these parameters only the entries train whose bit is set."""
    weights = [model.get_parameter(name) for name in names]
    masks = bits[: sum(weight.numel() for weight in weights)].split([weight.numel() for weight in weights])
    for name, weight, mask in zip(names, weights, masks, strict=True):
        restrict(model.get_submodule(name.rpartition(".")[0]), mask.view(weight.shape))


def _buffers(model: nn.Module) -> dict[str, list[Tensor]]:
    """The running statistics and the batch counts, in module order."""
    running = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    batches = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    return {"running": running, "batches": batches}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors]) if tensors else torch.empty(0)
