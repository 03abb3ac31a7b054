"""Tiny sets in CIFAR's official forms, for the tests of the readers, the download and the choice."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import pickle
import pickletools
import tarfile
from pathlib import Path

import numpy as np

from fastbn.data.cifar_files import Cifar, CifarForm, File

PER_FILE = 7  # odd, and no multiple of a label count: a misread record length shows


def random_set(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (count, 3, 32, 32) uint8 planes and (count,) labels."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3, 32, 32), np.uint8), generator.integers(0, classes, count)


def python_blob(planes: np.ndarray, labels: np.ndarray, labels_key: str = "labels") -> bytes:
    """Return a python batch as the official ones are: protocol 2, written under numpy's old module name."""
    content = {
        b"batch_label": b"some",
        labels_key.encode(): [int(k) for k in labels],
        b"data": planes.reshape(len(planes), -1),
    }
    return pickletools.optimize(pickle.dumps(content, protocol=2)).replace(b"numpy._core", b"numpy.core")


def binary_blob(planes: np.ndarray, labels: np.ndarray, label_bytes: int = 1) -> bytes:
    coarse = 19 - labels % 20  # differs from the fine label, so that reading the wrong byte shows
    columns = [coarse[:, None]] * (label_bytes - 1) + [labels[:, None], planes.reshape(len(planes), -1)]
    return np.concatenate(columns, axis=1).astype(np.uint8).tobytes()


def describe(name: str, blob: bytes, sized: bool = True) -> File:
    return File(name, hashlib.md5(blob).hexdigest(), len(blob) if sized else None)


def tiny(
    name: str = "cifar10", classes: int = 10, label_bytes: int = 1
) -> tuple[Cifar, dict[str, bytes], tuple, tuple]:
    """Return a set of two training files and a test file in both forms: (its description, path -> content,
    (planes, labels) of each split)."""
    train, test = random_set(2 * PER_FILE, classes, 1), random_set(PER_FILE, classes, 2)
    key = "fine_labels" if label_bytes == 2 else "labels"
    parts = {"one": [a[:PER_FILE] for a in train], "two": [a[PER_FILE:] for a in train], "test": list(test)}
    blobs: dict[str, bytes] = {}
    for part, (planes, labels) in parts.items():
        blobs[f"tiny-py/{part}"] = python_blob(planes, labels, key)
        blobs[f"tiny-bin/{part}.bin"] = binary_blob(planes, labels, label_bytes)
    blobs["tiny-py/meta"] = b"names"

    def files(folder: str, *names: str) -> tuple[File, ...]:
        return tuple(describe(n, blobs[f"{folder}/{n}"]) for n in names)

    python = CifarForm(
        "tiny-py",
        True,
        files("tiny-py", "one", "two"),
        files("tiny-py", "test"),
        files("tiny-py", "meta"),
        key,
    )
    binary = CifarForm(
        "tiny-bin",
        False,
        files("tiny-bin", "one.bin", "two.bin"),
        files("tiny-bin", "test.bin"),
        label_bytes=label_bytes,
    )
    spec = Cifar(
        name,
        "Tiny-CIFAR",
        tuple(f"name {k}" for k in range(classes)),
        (python, binary),
        "http://127.0.0.1:9/tiny.tar.gz",
        "",
    )
    return spec, blobs, train, test


def write(blobs: dict[str, bytes], folder: str, root: Path) -> None:
    """Puts the files of one form under `root`."""
    for path, blob in blobs.items():
        if path.startswith(folder + "/"):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(blob)


def archive(blobs: dict[str, bytes], extra: dict[str, bytes] | None = None) -> bytes:
    """Return a tar.gz of the python form, with whatever else is asked for in front."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for path, blob in {**(extra or {}), **blobs}.items():
            if not path.startswith("tiny-bin/"):
                info = tarfile.TarInfo(path)
                info.size = len(blob)
                tar.addfile(info, io.BytesIO(blob))
    return raw.getvalue()


def served(spec: Cifar, url: str, content: bytes) -> Cifar:
    return dataclasses.replace(spec, url=url, md5=hashlib.md5(content).hexdigest())
