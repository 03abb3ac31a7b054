"""A model's weights from a file with torchvision's keys, checked whole before anything is written; no
pickle is executed."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeGuard

import safetensors.torch
import torch
from torch import Tensor, nn

from fastbn import files
from fastbn.errors import UsageError
from fastbn.files import reason, shown
from fastbn.files.access import access
from fastbn.files.archives import check_zip

HEAD = ("fc.weight", "fc.bias")
COUNTER = "num_batches_tracked"
VARIANCE = "running_var"
ZIP = b"PK\x03\x04"  # how torch.save's files begin since 1.6
# the most bytes that a file may have: float64, an optimizer's vectors and an average beside the model's own
# float32, some of them twice, and for any model a head of many classes
TIMES, BESIDE = 16, 1 << 26


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> str:
    """Copy the file's parameters, γ, β and running statistics into `model`, and return the file's SHA-256
    (hex).

    path: `.safetensors`, or what torch.save wrote of a state dict (also under "state_dict", also with
    DataParallel's "module." on every key), read with weights_only=True. Any floating-point dtype, cast to the
    model's. A file with another number of classes leaves the model's own `fc`; `num_batches_tracked` may be
    missing, and is then 0.

    The file has at most 16 times the model's bytes and 64 MiB, its members, where it is torch.save's, are not
    compressed, and their CRCs are right. Raises UsageError, the model untouched, for a file that cannot be
    read, for keys or shapes that do not fit, and for values that are not finite or variances below 0.
    """
    path = Path(path)
    most = BESIDE + TIMES * sum(value.nbytes for value in model.state_dict().values())
    with access("weights file", path):
        content, state = read_state(path, most)
        put(model, state, path)
    return hashlib.sha256(content).hexdigest()


def read_state(path: Path, most: int) -> tuple[bytes, dict[str, Tensor]]:
    """Return a file of at most so many bytes, as `load_weights` takes it, and the state dict that it holds.
    Raises UsageError."""
    try:
        content = files.read(path, most)
    except OSError as error:
        raise UsageError(f"weights file {path}: {reason(error)}; give another") from error
    return content, _tensors(_read(path, content), path)


def put(model: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Copy these tensors, which came from `path`, into the model as `load_weights` does."""
    state = model.state_dict()
    if _other_classes(weights, state):
        weights = {name: value for name, value in weights.items() if name not in HEAD}
        expected = {name: value for name, value in state.items() if name not in HEAD}
    else:
        expected = state
    _check(weights, expected, path)
    _check_values(weights, expected, path)
    with torch.no_grad():
        for name, target in expected.items():
            if name in weights:
                target.copy_(weights[name])
            else:
                target.zero_()


def _read(path: Path, content: bytes) -> object:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        if content.startswith(ZIP):
            check_zip(io.BytesIO(content))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is no state dict: it is refused
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything, from EOFError to KeyError
        kind = "safetensors" if path.suffix == ".safetensors" else "torch.save (weights only)"
        raise UsageError(
            f"weights file {path}: not a readable {kind} file ({_first_line(error)}); use another copy"
        ) from error


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UsageError(
            f"weights file {path}: must hold a state dict of tensors by name, found {_kind(loaded)}"
        )
    for name, value in loaded.items():
        if not (
            isinstance(name, str)
            and _is_plain(value)
            and (value.is_floating_point() or name.endswith(COUNTER))
        ):
            what = (
                f"{shown(repr(name) if isinstance(name, (str, int)) else type(name).__name__, 60)}: "
                f"{_kind(value)}"
            )
            raise UsageError(
                f"weights file {path}: must hold floating-point tensors by name, found {what}; pass a state "
                "dict"
            )
    prefix = "module." if all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): value for name, value in loaded.items()}


def _other_classes(weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Tell whether the file's fc is a sound one that differs from the model's in its number of classes
    alone."""
    if not all(name in weights and name in state for name in HEAD):
        return False
    weight, bias = (weights[name].shape for name in HEAD)
    features = state[HEAD[0]].shape[1:]
    return weight[1:] == features and bias == weight[:1] and weight[0] != state[HEAD[0]].shape[0]


def _check(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    problems = []
    if missing := [name for name in expected if name not in weights and not name.endswith(COUNTER)]:
        problems.append(f"{len(missing)} missing ({_few(missing)})")
    if unexpected := sorted(name for name in weights if name not in expected):
        problems.append(f"{len(unexpected)} unexpected ({_few(unexpected)})")
    shapes = [(name, weights[name].shape, value.shape) for name, value in expected.items() if name in weights]
    if wrong := [f"{name} {tuple(has)} for {tuple(needs)}" for name, has, needs in shapes if has != needs]:
        problems.append(f"{len(wrong)} of another shape ({_few(wrong)})")
    if problems:
        raise UsageError(
            f"weights file {os.fspath(path)} does not fit the model: {', '.join(problems)}; check depth, "
            "width and family"
        )


def _check_values(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Raise UsageError for values with which no network computes anything, as they would be in the model's
    dtypes."""
    values = {name: state[name].to(target.dtype) for name, target in expected.items() if name in state}
    problems = []
    if infinite := [
        name for name, value in values.items() if value.is_floating_point() and not value.isfinite().all()
    ]:
        problems.append(f"{len(infinite)} not finite ({_few(infinite)})")
    below = [
        name
        for name, value in values.items()
        if name.endswith((VARIANCE, COUNTER)) and bool((value < 0).any())
    ]
    if below:
        problems.append(f"{len(below)} below 0 ({_few(below)})")
    if problems:
        raise UsageError(
            f"weights file {os.fspath(path)} holds what no network can use: {', '.join(problems)}; use "
            "another copy"
        )


def _few(names: Iterable[str]) -> str:
    names = [shown(name, 60) for name in names]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Tell whether it is a tensor of ordinary layout with its values in memory: neither sparse nor nested,
    nor of a class of its own."""
    if not isinstance(value, Tensor) or type(value) not in (Tensor, nn.Parameter) or value.is_complex():
        return False
    return (
        not (value.is_nested or value.is_quantized)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _kind(value: object) -> str:
    return (
        f"a {value.layout} {value.dtype} tensor on {value.device}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )


def _first_line(error: Exception) -> str:
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0])
