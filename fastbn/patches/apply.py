"""Saving a network's patch, and putting one onto its base."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.errors import UsageError
from fastbn.files import shown
from fastbn.models.init import fingerprint
from fastbn.models.load_weights import BESIDE, TIMES
from fastbn.models.network import Network
from fastbn.patches import digests, header
from fastbn.patches.contents import dtype_name, parts_of, shape_name, shape_of, unwrapped
from fastbn.patches.patch import MOST_BYTES, Patch, read
from fastbn.training import checkpoint


def save(model: nn.Module, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Write what training changed of a network to one small file that `fastbn.apply_patch` puts back.

    model: any network, fused or not; DistributedDataParallel, DataParallel and torch.compile are looked
        through. The file holds, by the network's own names: every parameter that requires grad, the norms'
        weights and biases, and the persistent buffers (running statistics, counters); of a weight of which
        `freeze(train="random=K")` trains some entries, those. Of the rest, the base, it holds digests.
        Of a FastBNOnlyResNet it holds the seed or file too, and `fastbn.load` makes the whole network of it.
    metadata: what to remember beside, as JSON has it: task, data set, accuracy, licence, the base's name.

    safetensors, no pickle; `safetensors.torch.load_file(path)` reads it without fastbn. Raises TypeError for
    what is no module, UsageError for NaN or infinite values, tensors without contents, and metadata that JSON
    does not have; MachineError where the file can't be written.

        net = fastbn.fuse(fastbn.freeze(timm.create_model("resnet18", pretrained=True), "bn+output"))
        fastbn.fit(net, train, test, epochs=3)
        fastbn.save(net, "flowers.safetensors", task="flowers", base="timm/resnet18.a1_in1k")
    """
    model = unwrapped(model)
    if isinstance(model, Network):
        checkpoint.save(model, path, **metadata)
    else:
        header.check_metadata(metadata, "save")
        patch_of(model, metadata).write(path)


def patch_of(model: nn.Module, metadata: dict[str, Any] | None = None) -> Patch:
    """Return the patch of a network as it is now; its tensors are the network's own. Raises UsageError for
    tensors without contents."""
    model = unwrapped(model)
    parts = parts_of(model)
    lines, sha256 = digests.lines(parts.frozen, parts.masks)
    some = {name: parts.frozen[name][mask] for name, mask in parts.masks.items()}
    masks = {name: mask.reshape(-1).cpu() for name, mask in parts.masks.items()}
    network = type(model).__name__
    return Patch(parts.stored | some, masks, tuple(parts.trains), network, lines, sha256, metadata or {})


def apply_patch(model: nn.Module, path: str | os.PathLike[str], strict: bool = True) -> nn.Module:
    """Put a patch onto the network that it was made from, in place, and return the network.

    model: the base: the same architecture with the same frozen weights, plain or fused, on any device, in any
        floating-point dtype (a base that was cast is known by its rounding; the patch's values are cast too).
        Its modes, its `requires_grad` and its optimizers stay as they are.
    path: what `fastbn.save` wrote.
    strict: refuse a network whose frozen weights have another SHA-256, or whose tensors have other names or
        shapes; False puts in what fits, and a warning says what it passes over.

    Raises UsageError, the network untouched: one line that names the first tensor that differs; for a file
    that is missing, damaged or no patch; and for values that the network's dtype can't hold.

        net = timm.create_model("resnet18", pretrained=True, num_classes=102)
        fastbn.apply_patch(net, "flowers.safetensors").eval()
    """
    network = unwrapped(model)
    patch = patch_for(network, path)
    try:
        values = placed(network, patch, strict)
    except UsageError as error:
        raise UsageError(f"{shown(path)}: {error}") from None
    write_onto(network, values)
    return model


def patch_for(model: nn.Module, path: str | os.PathLike[str]) -> Patch:
    """Read a patch that is no larger than one of this network can be. Raises UsageError as `read`."""
    size = sum(t.nbytes for t in parts_of(model).tensors.values())
    return read(path, min(MOST_BYTES, BESIDE + TIMES * size))


def write_onto(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into the network's tensors of these names."""
    tensors = parts_of(model).tensors
    with torch.no_grad():
        for name, value in values.items():
            tensors[name].copy_(value)


def placed(model: nn.Module, patch: Patch, strict: bool) -> dict[str, Tensor]:
    """Return what each tensor that a patch changes becomes, by name: of the network's dtype, on its device.
    Raises UsageError as `apply_patch`; warns of what is passed over."""
    return fitted(parts_of(model).tensors, patch, strict, lambda: fingerprint(model, patch.frozen))


def fitted(
    tensors: Mapping[str, Tensor], patch: Patch, strict: bool, digest: Callable[[], str]
) -> dict[str, Tensor]:
    """Return what `placed` returns, for a network's tensors by name. digest: their SHA-256 as a checkpoint
    has it."""
    misfits = _misfits(tensors, patch)
    wrong = [*misfits.values(), *_other_base(tensors, patch, misfits.keys(), digest)]
    if wrong:
        said = shown(wrong[0], 300) + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        if strict:
            raise UsageError(f"{said}; give the network that it was made from, or strict=False")
        warnings.warn(f"apply_patch passes over: {said}", stacklevel=3)
    fitting = {name: value for name, value in patch.tensors.items() if name not in misfits}
    return {name: _cast(name, value, tensors[name], patch.masks.get(name)) for name, value in fitting.items()}


def _cast(name: str, value: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return a patch's value as the network holds it. Made on the CPU: another device has to copy alone."""
    cast = value.to(target.dtype)
    if bool((torch.isfinite(cast) != torch.isfinite(value)).any()):
        dtype = dtype_name(cast.dtype)
        raise UsageError(f"{shown(name, 80)} holds values too large for the network's {dtype}; cast it up")
    if mask is not None:
        cast = target.detach().cpu().masked_scatter(mask.view(target.shape), cast)
    return cast.to(target.device)


def _misfits(tensors: Mapping[str, Tensor], patch: Patch) -> dict[str, str]:
    """Return, by name, in the network's order, a sentence for each tensor that the patch or the network alone
    has, or that they have in other shapes or kinds of dtypes."""
    known = {name: (tuple(t.shape), t.is_floating_point()) for name, t in patch.tensors.items()}
    for name, line in patch.frozen.items():
        known[name] = shape_of(line.split()[1]), line.startswith(("float", "bfloat"))
    sentences = {}
    for name, t in tensors.items():
        if name not in known:
            sentences[name] = f"the network has {name}, of which the patch knows nothing"
            continue
        shape, floats = known[name]
        if shape != tuple(t.shape):
            here = f"{shape_name(t.shape)} in the network"
            sentences[name] = f"{name} is {shape_name(shape)} in the patch and {here}"
        elif floats != t.is_floating_point():
            sentences[name] = f"{name} holds {dtype_name(t.dtype)}, and in the patch another kind of numbers"
    alone = [name for name in known if name not in tensors]
    return sentences | {name: f"the patch has {name}, which the network has not" for name in alone}


def _other_base(
    tensors: Mapping[str, Tensor], patch: Patch, misfits: Collection[str], digest: Callable[[], str]
) -> list[str]:
    """Return what differs between the network's frozen weights and the patch's base, misfits aside."""
    if patch.of_checkpoint:
        same = misfits or digest() == patch.sha256
        return [] if same else ["the frozen weights have another SHA-256 than those that it was made from"]
    fitting = {name: t for name, t in tensors.items() if name not in misfits}
    masks = {name: mask.view(fitting[name].shape) for name, mask in patch.masks.items() if name in fitting}
    return digests.differences(patch.frozen, patch.sha256, fitting, masks)
