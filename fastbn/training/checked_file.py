"""A safetensors file with a JSON header and a digest over both: written whole or not at all, and read back
or refused."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastbn import files
from fastbn.errors import MachineError, UsageError
from fastbn.settings import saved

FORMAT = "fastbn-1"
MOST_BYTES = 1 << 36  # of a checkpoint: parameters, statistics and Adam's two vectors of the largest network
MOST_BESIDE = 1_000  # names that are looked through for the nearest
MOST_HEADER = 1 << 26  # bytes of safetensors' own header, with fastbn's inside
TENSORS = ("parameters", "frozen", "running", "batches", "entries")  # and optimizer.*


def write(path: Path, tensors: dict[str, Tensor], header: dict[str, Any], kind: str = FORMAT) -> None:
    """Write the file, in whole or not at all: a kill or a full disk leaves the one that was there before.

    Raises MachineError where the file cannot be written.
    """
    tensors = {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}
    text = json.dumps(header, sort_keys=True)
    metadata = {"format": kind, "header": text, "sha256": _digest(text, tensors)}
    try:
        files.write(path, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        raise MachineError(
            f"could not save {path}: {files.reason(error)}; what was saved before is intact"
        ) from error


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header, which says what it may. Raises UsageError for a file that is
    missing, truncated, altered, or not fastbn's."""
    _, tensors, header = verified(path, (FORMAT,), "a checkpoint", MOST_BYTES)
    return checkpoint(tensors, header, path)


def checkpoint(
    tensors: dict[str, Tensor], header: Any, path: Path
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the header of a checkpoint, where they are one's. Raises UsageError."""
    for name in tensors:
        if name not in TENSORS and not name.startswith("optimizer."):
            raise UsageError(
                f"{path}: holds {files.shown(repr(name), 40)}, which no checkpoint does; use another copy"
            )
    return tensors, saved.header(header, path)


def _instead(path: Path) -> str:
    """Return what to name in place of a file that is not there: the nearest name beside what is missing, or
    what a name may be."""
    while path != path.parent and not path.parent.exists():
        path = path.parent
    with contextlib.suppress(OSError):
        beside = [one.name for one in itertools.islice(path.parent.iterdir(), MOST_BESIDE)]
        if near := difflib.get_close_matches(path.name, beside, n=1):
            return f"nearest: {files.shown(str(path.parent / near[0]), 200)}"
    return "name a run's folder, or a .safetensors file that fastbn wrote"


def verified(path: Path, kinds: tuple[str, ...], noun: str, most: int) -> tuple[str, dict[str, Tensor], Any]:
    """Return which of these formats the file has, its tensors and its header, a JSON value of any form, as
    they were written. Raises UsageError as `read`."""
    try:
        content = files.read(path, most)
        metadata = _metadata(content)
        tensors = safetensors.torch.load(content)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path}: no such file; {_instead(Path(path))}") from None
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        said = files.reason(error)
        raise UsageError(
            f"{path}: not a readable safetensors file ({said}); it is truncated or not {noun}"
        ) from error
    kind = metadata.get("format", "none")
    if kind not in kinds:
        raise UsageError(
            f"{path}: not {noun} that this version reads: its format is {files.shown(kind, 40)}, this "
            f"version's is {' or '.join(kinds)}"
        )
    if _digest(metadata.get("header", ""), tensors) != metadata.get("sha256"):
        raise UsageError(
            f"{path}: its contents do not match its SHA-256; the file is damaged, use another copy"
        )
    try:
        header = files.parsed(metadata["header"])
    except ValueError as error:
        raise UsageError(f"{path}: its header is no JSON ({files.reason(error)}); use another copy") from None
    return kind, tensors, header


def _metadata(content: bytes) -> dict[str, str]:
    """Return the strings beside the tensors, by name."""
    length = int.from_bytes(content[:8], "little")
    if not 0 < length <= min(MOST_HEADER, len(content) - 8):
        raise ValueError("its header is cut off")
    parsed = files.parsed(content[8 : 8 + length].decode("utf-8"))
    metadata = parsed.get("__metadata__") if isinstance(parsed, dict) else None
    return (
        metadata
        if isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
        else {}
    )


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        t = tensors[name]
        digest.update(f"{name} {t.dtype} {tuple(t.shape)}".encode("utf-8", "surrogatepass"))
        digest.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
