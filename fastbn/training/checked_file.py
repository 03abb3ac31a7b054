"""A safetensors file with a JSON header and a digest over both: written whole or not at all, and read back
or refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastbn.errors import MachineError, UsageError

FORMAT = "fastbn-1"


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Writes beside the target, flushes to the disk, renames: a kill or a full disk leaves the file that was
    there before.

    Raises MachineError where the file cannot be written.
    """
    tensors = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {"format": FORMAT, "header": text, "sha256": _digest(text, tensors)}
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(safetensors.torch.save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise MachineError(
            f"could not save {path}: {error.strerror or error}; what was saved before is intact"
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the header. Raises UsageError for a file that is missing, truncated, altered, or not
    fastbn's."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UsageError(
            f"{path}: not a readable safetensors file ({error}); it is truncated or not a checkpoint"
        ) from error
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "none")
        raise UsageError(
            f"{path}: not a checkpoint that this version reads: its format is {found}, this version's is "
            f"{FORMAT}"
        )
    if _digest(metadata.get("header", ""), tensors) != metadata.get("sha256"):
        raise UsageError(
            f"{path}: its contents do not match its SHA-256; the file is damaged, use another copy"
        )
    return tensors, json.loads(metadata["header"])


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
