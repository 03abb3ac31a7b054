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

from fastbn import files
from fastbn.errors import UsageError
from fastbn.models.families import Spec
from fastbn.models.init import fingerprint
from fastbn.models.init_names import REGENERABLE
from fastbn.models.network import Network, network
from fastbn.trainable import NORMS, entries, restrict, trainable
from fastbn.training import checked_file

CHECKPOINT = "checkpoint.safetensors"
# how a file's name ends that a checkpoint may name
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """The origin of the frozen parameters: 'seed', 'file' or 'stored', and the SHA-256 that they must
    have."""

    kind: str
    sha256: str
    file: str | None = None
    file_sha256: str | None = None


def split(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return (stored, frozen) names of the parameters: stored are those that train and every norm layer's
    own."""
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
    """Find out whether the model's frozen parameters are the ones that its spec (and file) give; draw them
    again to see."""
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
    """Return what a checkpoint stores of a model: `parameters`, `running` and `batches`, each flat; `frozen`
    if nothing else gives it; `entries`, a bit a weight, if only some entries of parameters train."""
    stored, frozen = split(model)
    parameters = dict(model.named_parameters())
    tensors = {"parameters": _flat([parameters[name] for name in stored])}
    if source.kind == "stored":
        tensors["frozen"] = _flat([parameters[name] for name in frozen])
    for name, buffers in _buffers(model).items():
        tensors[name] = _flat(buffers)
    return tensors | some_entries(model)


def some_entries(model: nn.Module) -> dict[str, Tensor]:
    """Return the `entries` of a model of which only some entries of parameters train; of another, {}."""
    masks = entries(model)
    return (
        {"entries": torch.from_numpy(np.packbits(_flat(list(masks.values())).cpu().numpy()))} if masks else {}
    )


@torch.no_grad()
def restore(model: nn.Module, tensors: dict[str, Tensor], source: WeightSource) -> None:
    """Put back what `tensors_of` took, in place. Raises UsageError where lengths or the frozen weights'
    SHA-256 differ, and for values that no training leaves."""
    check(model, tensors, source)
    parts, frozen = _parts(model, source), split(model)[1]
    for name, targets in parts.items():
        for target, values in zip(targets, tensors[name].split([t.numel() for t in targets]), strict=True):
            target.copy_(values.view(target.shape))
    for name, buffer in model.named_buffers():
        if name.endswith(("running_var", "num_batches_tracked")) and bool((buffer < 0).any()):
            raise UsageError(f"{name} in the checkpoint is negative; the file is damaged, use another copy")
    if fingerprint(model, frozen) != source.sha256:
        raise UsageError(
            f"the frozen weights from the {source.kind} have another SHA-256 than those that the checkpoint "
            "was trained with"
        )


def check(model: nn.Module, tensors: dict[str, Tensor], source: WeightSource) -> None:
    """Raises UsageError where these are not a checkpoint's tensors of this model, which may be on the meta
    device."""
    for name, targets in _parts(model, source).items():
        length = sum(t.numel() for t in targets)
        if name not in tensors or tensors[name].shape != (length,):
            shape = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise UsageError(
                f"the checkpoint is of another network: {name} should hold {length:,} numbers, found {shape}"
            )
        numbers(name, tensors[name], whole=name == "batches")


def numbers(name: str, values: Tensor, whole: bool = False) -> None:
    """Raises UsageError where these are not whole numbers, or not floating-point and finite."""
    if not values.numel():
        return
    if values.dtype != torch.int64 if whole else not values.is_floating_point():
        kind = "int64" if whole else "floating-point numbers"
        raise UsageError(f"{name} in the checkpoint should be {kind}, found {values.dtype}; use another copy")
    if not whole and not bool(torch.isfinite(values.float()).all()):
        raise UsageError(f"{name} in the checkpoint holds NaN or infinite numbers; use another copy")


def _parts(model: nn.Module, source: WeightSource) -> dict[str, list[Tensor]]:
    """Return the tensors of the model that a checkpoint stores, by the name of the vector that they are
    stored in."""
    stored, frozen = split(model)
    parameters = dict(model.named_parameters())
    parts: dict[str, list[Tensor]] = {"parameters": [parameters[name] for name in stored], **_buffers(model)}
    if source.kind == "stored":
        parts["frozen"] = [parameters[name] for name in frozen]
    return parts


def save(model: Network, path: str | os.PathLike[str], **extra: Any) -> None:
    """Write a FastBNOnlyResNet, or another network made from a Spec, to one small file that `fastbn.load`
    brings back.

    Raises TypeError for another kind of model, MachineError where the file can't be written.
    """
    if not isinstance(model, Network):
        raise TypeError(
            f"a checkpoint is of a FastBNOnlyResNet, got {type(model).__name__}; of another network "
            "fastbn.save writes a patch"
        )
    source = source_of(model)
    checked_file.write(Path(path), tensors_of(model, source), header_of(model, source) | extra)


def header_of(model: Network, source: WeightSource) -> dict[str, Any]:
    """Return what a checkpoint says of the model itself."""
    trains = [name for name, _ in trainable(model)]
    some = {"entries": list(masks)} if (masks := entries(model)) else {}
    return {"model": model.spec.said(), "source": dataclasses.asdict(source), "trains": trains, **some}


def load(
    run: str | os.PathLike[str], engine: str = "auto", weights: str | os.PathLike[str] | None = None
) -> Network:
    """Return the model of a run's folder, or of a file that `save` wrote, on the CPU, with what trained
    requiring grad.

    weights: where the frozen weights' file lies now, if it has moved.
    Raises UsageError for a missing, damaged or foreign file, and where the frozen weights' SHA-256 differs.
    """
    tensors, header = read(run)
    try:
        return build(tensors, header, engine, weights)
    except UsageError as error:
        raise UsageError(f"{os.fspath(run)}: {error}") from error


def read(run: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a run's folder, or of a file that `save` wrote. Raises UsageError
    as `checked_file.read`."""
    path = Path(run)
    return checked_file.read(path / CHECKPOINT if files.is_folder(path) else path)


def build(
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    engine: str,
    weights: str | os.PathLike[str] | None = None,
) -> Network:
    """Return the model that a checkpoint's tensors and header describe, compared with them before it takes
    memory."""
    spec, source = Spec(**header["model"]), WeightSource(**header["source"])
    file = _weights_file(source) if weights is None else weights
    trains = set(header["trains"])

    def fits(plain: Network) -> None:
        if unknown := sorted(trains - {name for name, _ in plain.named_parameters()}):
            raise UsageError(
                f"the checkpoint says that {files.shown(repr(unknown[0]), 60)} trains, which {spec.title} "
                "has not"
            )
        _mark(plain, trains)
        check(plain, tensors, source)

    model = network(spec, engine, file if source.kind == "file" else None, fits)
    _mark(model, trains)
    restore(model, tensors, source)
    if "entries" in tensors or "entries" in header:
        _restrict(model, header.get("entries", []), tensors.get("entries"))
    return model


def _mark(model: nn.Module, trains: set[str]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trains)


def _weights_file(source: WeightSource) -> str | None:
    """Return where a checkpoint says that its frozen weights lie. Raises UsageError where no weights lie
    there: what a file says is looked up only where it names a regular file of a kind that holds weights, by
    its whole path."""
    if source.kind != "file":
        return None
    remedy = "say where it lies now: weights=, or --weights"
    named = source.file is not None and os.path.isabs(source.file) and source.file.endswith(WEIGHTS)
    if source.file is None or not named:
        said = files.shown(source.file, 200)
        raise UsageError(
            f"the frozen weights came from {said}, no whole path that ends in {', '.join(WEIGHTS)}; {remedy}"
        )
    if not files.is_file(source.file):
        raise UsageError(
            f"the frozen weights came from {files.shown(source.file, 200)}, where there is no file; {remedy}"
        )
    return source.file


def _restrict(model: nn.Module, names: list[str], packed: Tensor | None) -> None:
    """Train only the entries of these parameters whose bit is set."""
    parameters = dict(model.named_parameters())
    some = {
        name
        for name in names
        if name.rpartition(".")[2] == "weight" and name in parameters and parameters[name].requires_grad
    }
    weights = [parameters[name] for name in names if name in some]
    count = sum(weight.numel() for weight in weights)
    if (
        packed is None
        or packed.dtype != torch.uint8
        or packed.shape != (-(-count // 8),)
        or len(some) < len(names)
        or not names
    ):
        raise UsageError(
            "the checkpoint's entries are not a bit for each weight that it says trains in part; use "
            "another copy"
        )
    masks = (
        torch.from_numpy(np.unpackbits(packed.numpy()))
        .bool()[:count]
        .split([weight.numel() for weight in weights])
    )
    for name, weight, mask in zip(names, weights, masks, strict=True):
        restrict(model.get_submodule(name.rpartition(".")[0]), mask.view(weight.shape))


def _buffers(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return the running statistics and the batch counts, in module order."""
    running = [b for name, b in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    batches = [b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")]
    return {"running": running, "batches": batches}


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors]) if tensors else torch.empty(0)
